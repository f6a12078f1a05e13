"""Transcripts for the clips that have none, and the CSV that keeps them; the recogniser is a fake."""

import csv
import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mertool.encoders import CheckpointRef, RecognitionSettings, SpeechRecognition
from mertool.encoders.asr import Transcript
from mertool.errors import ClipError, MertoolError, MertoolWarning
from mertool.extraction import transcripts as module
from mertool.extraction.decoding import DecodedClip
from mertool.extraction.transcription import Transcriber
from mertool.extraction.transcripts import COLUMNS, read_rows
from mertool.manifest import Clip, Manifest
from mertool.media_digest import clip_signature, digest_of_signature

TEXTS = {1.0: "good day", 2.0: 'so sad, "so" bad', 3.0: "", 4.0: "很难过"}


class FakeRecogniser:
    """A wave is its loudness, and TEXTS says what that means. More than `fits` waves at once do not fit."""

    def __init__(self, fits: int = 100, huge: float | None = None, dies_at: float | None = None):
        self.fits, self.huge, self.dies_at = fits, huge, dies_at
        self.windows, self.sizes = 4, []

    @property
    def budget(self) -> float:
        return self.windows * 30.0

    def cost(self, wave) -> float:
        return 30.0

    def halve(self) -> bool:
        self.windows, before = max(1, self.windows // 2), self.windows
        return before > 1

    def transcribe(self, waves):
        self.sizes.append(len(waves))
        loud = [float(wave[0]) for wave in waves]
        if len(waves) > self.fits or self.huge in loud:
            raise torch.OutOfMemoryError("does not fit")
        if self.dies_at in loud:
            raise KeyboardInterrupt
        texts = [TEXTS.get(value, f"word {value:g}") for value in loud]
        return [
            Transcript(text, 0.9, 0.012345, "zh" if "很" in text else "en") if text else Transcript("", 0.0, 0.8)
            for text in texts
        ]


class TranscriptionRun:
    """Clips in a folder, one number in each file: its loudness, or the reason why it cannot be read."""

    def __init__(self, folder: Path, contents: Iterable[float | str]):
        self.folder, self.output = folder, folder / "features" / "transcripts.csv"
        self.clips: list[Clip] = []
        self.decoded_now: list[str] = []
        self.steps: list[tuple[int, int, int]] = []
        self.source = CheckpointRef(name="fake", folder=folder / "model", checkpoint="some-owner/fake")
        self.settings = RecognitionSettings(vad="digest")
        self.warn_without_vad = True
        self.set_model("weights")
        for number, content in enumerate(contents):
            self.write(f"c{number}", content)
            self.clips.append(Clip(clip=f"c{number}", path=folder / f"c{number}.wav"))

    @property
    def recognition(self) -> SpeechRecognition:
        return SpeechRecognition(checkpoint=self.source, settings=self.settings)

    def set_model(self, weights: str) -> None:
        self.source.folder.mkdir(exist_ok=True)
        (self.source.folder / "model.safetensors").write_text(weights)

    def write(self, clip: str, content: float | str) -> None:
        (self.folder / f"{clip}.wav").write_text(str(content))

    def read(self, items):
        for item in items:
            self.decoded_now.append(item.clip.clip)
            content = item.clip.path.read_text() if item.clip.path.exists() else "missing_file"
            if item.clip.path.exists():
                item = replace(item, digest=clip_signature(item.clip.path, item.clip.start, item.clip.end))
            if content.replace(".", "").isdigit():
                yield item, DecodedClip(np.full(RATE, float(content), np.float32), seconds=1.0)
            else:
                yield item, ClipError(content)

    def run(self, recogniser: FakeRecogniser | None = None):
        """Transcribe the clips with a fake recogniser."""
        run = self
        run.decoded_now.clear()
        run.steps.clear()
        run.loaded = 0

        class FakeTranscriber(Transcriber):
            def load_recogniser(self):
                run.loaded += 1
                return recogniser or FakeRecogniser()

            def decode(self, items):
                return run.read(items)

        manifest = Manifest(tuple(self.clips), self.folder / "clips.csv")
        transcriber = FakeTranscriber(
            output=self.output,
            recognition=self.recognition,
            device=torch.device("cpu"),
            warn_without_vad=self.warn_without_vad,
        )
        return transcriber.transcribe(manifest, lambda *step: self.steps.append(step))

    def rows(self) -> list[dict[str, str]]:
        with open(self.output, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def column(self, name: str) -> list[str]:
        return [row[name] for row in self.rows()]


RATE = 16_000


@pytest.fixture
def job(tmp_path):
    """A function that makes a run over clips of these contents."""
    return lambda *contents: TranscriptionRun(tmp_path, contents)


# ---------------------------------------------------------------- what comes out


def test_texts_are_filled_in_and_kept(job):
    work = job(1.0, 2.0, 4.0)
    found = work.run()
    assert [clip.text for clip in found.manifest.clips] == ["good day", 'so sad, "so" bad', "很难过"]
    assert (found.pending, found.cached, found.reasons) == (3, 0, {})
    rows = work.rows()
    assert tuple(rows[0]) == COLUMNS
    assert {key: rows[1][key] for key in COLUMNS[:5]} == {
        "clip": "c1",
        "text": 'so sad, "so" bad',
        "language": "en",
        "confidence": "0.9000",
        "no_speech": "0.0123",
    }
    assert digest_of_signature(rows[1]["digest"]) == work.clips[1].digest()
    assert set(work.column("recogniser")) == {work.recognition.id}
    assert set(work.column("reason")) == {""}


def test_a_clip_with_a_text_is_not_touched(job):
    work = job(1.0, 2.0, 3.0)
    work.clips[0] = Clip(
        clip="c0", path=work.clips[0].path, label="happy", text="as it was", speaker="ann", split="train"
    )
    work.clips[1] = Clip(
        clip="c1", path=work.clips[1].path, label="sad", text="  ", speaker="bob", split="test"
    )  # as good as none
    found = work.run()
    assert work.decoded_now == ["c1", "c2"]
    assert work.column("clip") == ["c1", "c2"]
    assert found.manifest.clips[0] == work.clips[0]
    filled = found.manifest.clips[1]
    assert (filled.text, filled.label, filled.speaker, filled.split) == ('so sad, "so" bad', "sad", "bob", "test")


def test_where_all_have_a_text_nothing_is_read_or_written(job):
    work = job(1.0)
    work.clips = [Clip(clip="c0", path=work.clips[0].path, text="said")]
    found = work.run()
    assert (found.pending, found.cached, found.manifest.clips) == (0, 0, tuple(work.clips))
    assert work.loaded == 0
    assert not work.output.exists()


def test_empty_speech_is_no_text(job):
    work = job(1.0, 3.0)
    found = work.run()
    assert (found.pending, found.reasons) == (2, {"c1": "no_text"})
    assert found.manifest.clips[1].text is None
    row = work.rows()[1]
    assert (row["text"], row["confidence"], row["no_speech"], row["reason"]) == ("", "0.0000", "0.8000", "no_text")


def test_bad_clips_are_recorded_and_the_run_continues(job):
    work = job("unreadable", 1.0, "no_audio", 2.0)
    found = work.run()
    assert (found.pending, found.reasons) == (4, {"c0": "unreadable", "c2": "no_audio"})
    assert work.column("reason") == ["unreadable", "", "no_audio", ""]
    assert work.rows()[0]["confidence"] == ""
    assert [clip.text for clip in found.manifest.clips] == [None, "good day", None, 'so sad, "so" bad']


def test_progress_counts_every_clip_once(job):
    work = job(1.0, "unreadable", 3.0, "no_audio", 2.0)
    work.run()
    assert [done for done, *_ in work.steps] == [1, 2, 3, 4, 5]
    assert work.steps[-1] == (5, 5, 1, 0.0)  # a clip without sound is no failure, nor is one without speech


def test_a_confidence_that_is_not_finite_is_recorded(job):
    work = job(1.0)
    recogniser = FakeRecogniser()
    recogniser.transcribe = lambda waves: [Transcript("", float("nan"), float("nan"))]
    assert work.run(recogniser).reasons == {"c0": "not_finite"}
    assert (work.rows()[0]["confidence"], work.rows()[0]["no_speech"]) == ("", "")


# ---------------------------------------------------------------- batches


def test_batches_are_filled_to_the_budget(job):
    recogniser = FakeRecogniser()
    job(*[float(n) for n in range(1, 11)]).run(recogniser)
    assert recogniser.sizes == [4, 4, 2]


def test_what_does_not_fit_is_halved_and_so_are_later_batches(job):
    work, recogniser = job(*[float(n) for n in range(1, 11)]), FakeRecogniser(fits=2)
    assert len(work.run(recogniser).reasons) == 1  # one is silent
    assert recogniser.sizes == [4, 2, 2, 2, 2, 2]
    assert work.column("text")[4:] == [f"word {n}" for n in range(5, 11)]


def test_a_clip_that_does_not_fit_alone_is_recorded_and_tried_again(job):
    work = job(1.0, 9.0, 2.0)
    assert work.run(FakeRecogniser(huge=9.0)).reasons == {"c1": "out_of_memory"}
    assert work.column("text") == ["good day", "", 'so sad, "so" bad']
    found = work.run()
    assert work.decoded_now == ["c1"]
    assert (found.pending, found.cached, found.reasons) == (1, 2, {})


# ---------------------------------------------------------------- the cache


def test_a_second_run_does_nothing(job):
    work = job(1.0, 3.0, "unreadable")
    first = work.run()
    before = work.output.stat()
    second = work.run()
    assert (work.loaded, work.decoded_now) == (0, [])
    assert (second.pending, second.cached) == (0, 3)
    assert second.reasons == first.reasons == {"c1": "no_text", "c2": "unreadable"}
    assert second.manifest == first.manifest
    assert work.output.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(("content", "again"), [("missing_file", True), ("timeout", True), ("no_audio", False)])
def test_transient_failures_are_tried_again(content, again, job):
    work = job(1.0, content)
    work.run()
    work.run()
    assert work.decoded_now == ["c1"] * again


def test_a_changed_file_is_done_again(job):
    work = job(1.0, 2.0)
    work.run()
    work.write("c1", 4.0)
    found = work.run()
    assert (work.decoded_now, found.cached) == (["c1"], 1)
    assert work.column("text") == ["good day", "很难过"]


def test_another_recogniser_does_all_again(job):
    work = job(1.0, 2.0)
    work.run()
    work.set_model("other weights")
    assert work.run().pending == 2
    assert set(work.column("recogniser")) == {work.recognition.id}


@pytest.mark.parametrize("change", [{"language": "en"}, {"chinese": "simplified"}, {"vad": None}, {"version": 2}])
def test_other_settings_do_all_again(change, job):
    work = job(1.0, 2.0)
    work.warn_without_vad = False
    work.run()
    work.settings = replace(work.settings, **change)
    assert work.run().pending == 2


def test_chinese_is_converted_and_other_languages_are_not(job, monkeypatch):
    pytest.importorskip("opencc")
    monkeypatch.setitem(TEXTS, 4.0, "很難過")
    work = job(1.0, 4.0)
    for script, text in (("simplified", "很难过"), ("traditional", "很難過"), (None, "很難過")):
        work.settings = replace(work.settings, chinese=script)
        work.run()
        assert work.column("text") == ["good day", text]
        assert work.column("language") == ["en", "zh"]


def test_without_voice_activity_detection_one_line_says_how_to_get_it(job):
    work = job(1.0, 3.0)
    work.settings = replace(work.settings, vad=None)
    with pytest.warns(MertoolWarning, match=r"pip install 'mertool\[asr\]'") as issued:
        work.run()
    assert len(issued) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work.run()  # all is cached, so nobody is told again
        work.warn_without_vad = False
        work.set_model("other weights")
        work.run()


def test_a_corrected_text_stays(job):
    """Whoever corrects a text in the CSV gets it from there, also by way of a spreadsheet's byte order mark."""
    work = job(1.0, 2.0)
    work.run()
    table = work.output.read_text(encoding="utf-8").replace("good day", "good days")
    work.output.write_text("\ufeff" + table + "\n", encoding="utf-8")
    assert work.run().manifest.clips[0].text == "good days"


def test_a_run_that_is_interrupted_keeps_what_it_had(job):
    work = job(*[float(n) for n in range(1, 11)])
    with pytest.raises(KeyboardInterrupt):
        work.run(FakeRecogniser(dies_at=9.0))
    assert work.column("clip") == [f"c{n}" for n in range(8)]
    found = work.run()
    assert work.decoded_now == ["c8", "c9"]
    assert (found.pending, found.cached, found.reasons) == (2, 8, {"c2": "no_text"})
    assert len(work.rows()) == 10


def test_a_run_that_is_killed_loses_little(job, monkeypatch):
    monkeypatch.setattr(module, "SAVE_CLIPS", 3)
    work = job(*[float(n) for n in range(1, 11)])
    saved = []
    write = module.write_rows
    monkeypatch.setattr(module, "write_rows", lambda path, rows: (saved.append(len(rows)), write(path, rows)))
    work.run()
    assert saved == [3, 6, 9, 10]


def test_a_slow_run_is_saved_by_the_clock(job, monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    saved = []
    monkeypatch.setattr(module, "write_rows", lambda path, rows: saved.append(len(rows)))
    job(1.0, 2.0, 3.0).run()
    assert saved == [1, 2, 3]


def test_rows_are_in_the_order_of_the_manifest_and_others_are_kept(job):
    work = job(1.0, 2.0, 4.0)
    work.run()
    work.clips = [work.clips[2], Clip(clip="new", path=work.folder / "c1.wav"), work.clips[0]]
    assert work.run().cached == 2
    assert work.column("clip") == ["c2", "new", "c0", "c1"]
    assert read_rows(work.output)["c1"].text == 'so sad, "so" bad'


# ---------------------------------------------------------------- files of other kinds


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"clip,path,label\nc0,a.wav,happy\n", "begins with 'clip,path,label'"),
        (b"", "begins with 'nothing'"),
        (b"\x89HDF\xff\xfe", "not a CSV of transcripts in UTF-8"),
        (f"{HEADER}\nc0,hello\n".encode(), "row 2 is not clip,text"),
        (f"{HEADER}\nc0,hello,en,much,,d,r,\n".encode(), "row 2 is not clip,text"),
        (f"{HEADER}\nc0,a,en,1,0,d,r,\nc0,b,en,1,0,d,r,\n".encode(), "1 fault: row 3: clip id 'c0' occurs twice"),
    ],
)
def test_a_foreign_file_is_refused_and_stays(content, words, job):
    work = job(1.0)
    work.output.parent.mkdir()
    work.output.write_bytes(content)
    with pytest.raises(MertoolError) as error:
        work.run()
    message = str(error.value)
    assert words in message
    assert str(work.output) in message
    assert "give another output path, or move the file away" in message
    assert "\n" not in message
    assert work.output.read_bytes() == content
    assert work.loaded == 0


def test_an_output_that_cannot_be_written_is_told_before_the_work(job):
    work = job(1.0)
    work.output.mkdir(parents=True)
    with pytest.raises(MertoolError, match="it is a folder"):
        work.run()
    assert work.loaded == 0


def test_nothing_else_is_left_in_the_folder(job):
    work = job(1.0, 2.0)
    work.run()
    assert os.listdir(work.output.parent) == ["transcripts.csv"]
