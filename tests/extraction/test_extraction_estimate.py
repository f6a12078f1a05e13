"""`extract --dry-run`: estimates from a measured sample; nothing is written."""

import json

import pytest

from mertool.errors import MertoolError
from mertool.extraction import estimate
from mertool.store import parts_folder

KEYS = [
    "store",
    "clips",
    "cached",
    "todo",
    "sample",
    "sample_failed",
    "media_hours",
    "disk",
    "faces",
    "faces_disk",
    "disk_free",
    "seconds",
]


@pytest.fixture
def texts(tmp_path, write_manifest):
    """A function (count) that writes a manifest of so many transcripts of one length."""

    def write(count):
        rows = [{"clip": f"c{n}", "path": f"c{n}.mp4", "text": "we lost the dog again " * 8} for n in range(count)]
        return write_manifest(tmp_path / f"clips{count}.csv", rows)

    return write


@pytest.fixture
def text(invoke, tiny_encoders, tmp_path):
    """A function (manifest, *options) that extracts frames of text; the command's result."""

    def run(manifest, *options, encoder=tiny_encoders["bert"]):
        arguments = ["-o", tmp_path / "out" / "text.h5", "--encoder", encoder, "--pool", "none"]
        return invoke("extract", "text", manifest, *arguments, *options)

    return run


@pytest.fixture
def dry(text):
    """Like `text`, with --dry-run and --json; returns the object."""

    def run(manifest, *options):
        result = text(manifest, "--dry-run", "--json", *options)
        assert result.exit_code == 0, (result.exception, result.stderr)
        return json.loads(result.stdout)

    return run


def files(folder):
    """Return all files and folders with their sizes and times."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_nothing_is_written(dry, text, texts, tmp_path):
    manifest = texts(6)
    before = files(tmp_path)
    estimated = dry(manifest)
    text(manifest, "--dry-run")
    assert files(tmp_path) == before
    assert list(estimated) == KEYS
    assert (estimated["clips"], estimated["cached"], estimated["todo"], estimated["sample_failed"]) == (6, 0, 6, 0)
    assert estimated["store"] == str(tmp_path / "out" / "text.h5")
    assert estimated["disk_free"] > 0


@pytest.mark.parametrize(("count", "sample"), [(1, 1), (4, 4), (5, 1), (36, 32), (40, 32)])
def test_the_sample(count, sample, dry, texts):
    """Four clips to warm up, then at most 32; with very few clips all of them are measured."""
    assert dry(texts(count))["sample"] == sample


def test_a_half_filled_store(dry, text, texts, tmp_path):
    assert text(texts(4), "-q").exit_code == 0
    before = files(tmp_path / "out")
    estimated = dry(texts(10))
    assert (estimated["clips"], estimated["cached"], estimated["todo"]) == (10, 4, 6)
    assert files(tmp_path / "out") == before


def test_a_finished_store(dry, text, texts, tmp_path):
    text(texts(4), "-q")
    before = files(tmp_path / "out")
    estimated = dry(texts(4))
    assert {key: estimated[key] for key in ("cached", "todo", "sample", "media_hours", "disk", "seconds")} == {
        "cached": 4,
        "todo": 0,
        "sample": 0,
        "media_hours": 0,
        "disk": 0,
        "seconds": 0,
    }
    assert text(texts(4), "--dry-run").stdout == "4 clips: 4 cached, 0 to do; nothing was written\n"
    assert files(tmp_path / "out") == before


def test_a_finished_store_needs_no_encoder_to_be_loaded(dry, text, texts, monkeypatch):
    from mertool.extraction.clip_encoder import EncoderAssets

    text(texts(4), "-q")
    monkeypatch.setattr(EncoderAssets, "load", lambda *_: pytest.fail("the encoder was loaded"))
    assert dry(texts(4))["todo"] == 0


def test_parts_of_a_killed_run_count_as_cached_and_stay(dry, text, texts, tmp_path):
    text(texts(4), "-q")
    store = tmp_path / "out" / "text.h5"
    parts = parts_folder(store)
    parts.mkdir()
    store.rename(parts / "part-00000000000000000001-aaaaaaaa.h5")
    before = {path: path.read_bytes() for path in parts.glob("part-*")}
    estimated = dry(texts(10))
    assert (estimated["cached"], estimated["todo"]) == (4, 6)
    assert {path: path.read_bytes() for path in parts.glob("part-*")} == before
    assert not store.exists()


def test_overwrite_extracts_all_clips_again(dry, text, texts):
    text(texts(4), "-q")
    estimated = dry(texts(4), "--overwrite")
    assert (estimated["cached"], estimated["todo"]) == (0, 4)


def test_an_estimate_of_a_shard(dry, texts, tmp_path):
    estimated = dry(texts(10), "--shard", "2/3")
    assert (estimated["clips"], estimated["todo"]) == (3, 3)
    assert estimated["store"] == str(tmp_path / "out" / "text.2-of-3.h5")


def test_the_disk_that_is_needed(dry, text, texts, tmp_path):
    """Within a factor of two of what the run then takes."""
    manifest = texts(60)
    guess = dry(manifest)["disk"]
    text(manifest, "-q")
    taken = (tmp_path / "out" / "text.h5").stat().st_size
    assert guess / 2 < taken < 2 * guess


def test_time_and_media_grow_with_the_clips(dry, texts, monkeypatch):
    from mertool.extraction.progress import ExtractionStats

    class Measured:
        """Half a second and three seconds of media per clip, a tenth of them bad."""

        def __init__(self, job):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run(self, items, *, writers, face_writer, on_progress):
            bad = {"unreadable": len(items) // 10}
            return ExtractionStats(len(items), bad, media_seconds=3.0 * len(items), wall=0.5 * len(items))

    monkeypatch.setattr(estimate, "ExtractionWorker", Measured)
    estimated = dry(texts(7200))
    assert (estimated["seconds"], estimated["media_hours"], estimated["sample_failed"]) == (3600.0, 6.0, 3)


def test_the_printed_lines(text, texts, monkeypatch):
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5_000_000_000}))
    lines = text(texts(10), "--dry-run").stdout.splitlines()
    assert lines[0] == "10 clips: 0 cached, 10 to do; nothing was written"
    assert lines[1] == "media: none"
    assert lines[2].startswith("time: about ")
    assert lines[2].endswith(" s and loading, from 6 measured clips")
    assert "text.h5 grows by about " in lines[3]
    assert lines[4].endswith("5.0 GB are free")
    assert len(lines) == 5


def test_a_disk_that_is_too_small_is_reported(text, texts, monkeypatch):
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "note: that does not fit on the disk" in text(texts(10), "--dry-run").stderr
    assert text(texts(10), "--dry-run", "-q").stdout == ""


# ---------------------------------------------------------------- the same errors as the run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--encoder", "/nowhere/model"], "encoder folder /nowhere/model does not exist"),
        (["--encoder", "bert-bse"], "did you mean 'bert-base'?"),
        (["--layers", "9"], "are not in this encoder"),
        (["--shard", "4/3"], "cannot be read"),
    ],
)
def test_errors_are_those_of_the_run(options, words, text, texts, tmp_path):
    messages = {str(text(texts(4), *options, *more).exception) for more in ([], ["--dry-run"])}
    assert len(messages) == 1
    assert words in messages.pop()
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_recipe_is_refused(text, texts):
    text(texts(4), "-q")
    messages = {str(text(texts(4), "--layers", "1", *more).exception) for more in ([], ["--dry-run"])}
    assert len(messages) == 1
    assert "was made by another recipe" in messages.pop()


def test_a_file_that_is_no_store_is_refused_with_overwrite_too(text, texts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "text.h5").write_text("dear diary")
    messages = {str(text(texts(4), "--overwrite", *more).exception) for more in ([], ["--dry-run"])}
    assert len(messages) == 1
    assert "is not a feature store" in messages.pop()


def test_speech_recognition_is_not_measured(text, texts, write_manifest, tiny_encoders, tmp_path):
    silent = write_manifest(tmp_path / "s.csv", [{"clip": "a", "path": "a.mp4"}])
    result = text(silent, "--asr", tiny_encoders["whisper"], "--dry-run")
    assert isinstance(result.exception, MertoolError)
    assert str(result.exception).startswith("--dry-run measures no speech recognition: leave out --asr")
    # Where every clip has a transcript there is nothing to recognise.
    assert text(texts(4), "--asr", tiny_encoders["whisper"], "--dry-run").exit_code == 0


# ---------------------------------------------------------------- media


def test_audio(invoke, demo_rows, write_manifest, tiny_encoders, clip_names, tmp_path):
    rows = [demo_rows[clip] for clip in [*clip_names.labelled[:7], clip_names.broken]]
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    arguments = ["extract", "audio", manifest, "-o", tmp_path / "a.h5", "--encoder", tiny_encoders["hubert_group"]]
    arguments += ["--pool", "none", "--workers", 1, "--max-failed", 1, "--json"]
    guess = json.loads(invoke(*arguments, "--dry-run").stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.csv"]
    assert (guess["todo"], guess["sample"]) == (8, 4)
    result = json.loads(invoke(*arguments).stdout)
    assert guess["disk"] / 2 < (tmp_path / "a.h5").stat().st_size < 2 * guess["disk"]
    assert 0.5 < 3600 * guess["media_hours"] / result["media_seconds"] < 2


@pytest.mark.slow
def test_video_with_its_crops(invoke, demo_rows, write_manifest, tiny_encoders, tmp_path):
    manifest = write_manifest(tmp_path / "clips.csv", [demo_rows["spk01_001"], demo_rows["spk02_004"]])
    arguments = ["extract", "video", manifest, "-o", tmp_path / "v.h5", "--encoder", tiny_encoders["clip"]]
    arguments += ["--fps", 1, "--workers", 1, "--json"]
    guess = json.loads(invoke(*arguments, "--dry-run").stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips.csv"]
    assert json.loads(invoke(*arguments).stdout)["features"] == 2
    taken = sum((tmp_path / name).stat().st_size for name in ("v.h5", "faces.h5"))
    assert guess["faces"] == str(tmp_path / "faces.h5")
    grown = guess["disk"] + guess["faces_disk"]
    assert grown / 2 < taken < 2 * grown
    before = files(tmp_path)
    arguments[arguments.index(tmp_path / "v.h5")] = tmp_path / "w.h5"
    again = json.loads(invoke(*arguments, "--dry-run").stdout)
    assert again["todo"] == 2
    assert (again["disk"], again["faces_disk"]) == (guess["disk"], 0)  # the crops are there already
    assert files(tmp_path) == before
