"""Speech recognition with a tiny Whisper that has learnt two tones: what it says, and that it stays silent."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DULL, HIGH, LOW, RATE, tone

from mertool.encoders.asr import DecodedWindow, Recogniser, Transcript, load
from mertool.errors import MertoolError


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several threads only wait for each other on a model of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recogniser(whisper: Path) -> Recogniser:
    return load_cpu(whisper)


@pytest.fixture
def changed(whisper: Path, tmp_path: Path):
    """A function that copies the model folder with another generation_config.json (None: without one)."""

    def change(settings: dict | None) -> Path:
        shutil.copytree(whisper, tmp_path / "changed")
        path = tmp_path / "changed" / "generation_config.json"
        if settings is None:
            path.unlink()
        else:
            known = json.loads(path.read_text(encoding="utf-8"))
            known = {key: value for key, value in (known | settings).items() if value is not None}
            path.write_text(json.dumps(known), encoding="utf-8")
        return tmp_path / "changed"

    return change


def load_cpu(folder: Path, language: str | None = None) -> Recogniser:
    return load(folder, device=torch.device("cpu"), dtype=torch.float32, language=language)


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(("pitch", "text"), [(LOW, "good day"), (HIGH, "sad")])
def test_what_is_said(pitch, text, recogniser):
    (found,) = recogniser.recognise([tone(pitch, 0.8, seed=10_001)])
    assert found.text == text
    assert 0.7 < found.confidence <= 1
    assert 0 <= found.no_speech < 0.2


def test_half_precision_says_the_same(whisper):
    found = load(whisper, device=torch.device("cpu"), dtype=torch.bfloat16).recognise(
        [tone(LOW, 0.8, 10_001), tone(DULL)]
    )
    assert [transcript.text for transcript in found] == ["good day", ""]
    assert 0.7 < found[0].confidence <= 1


def test_nobody_speaks(recogniser):
    (found,) = recogniser.recognise([tone(DULL, 0.8, seed=10_001)])
    assert (found.text, found.confidence) == ("", 0)
    assert 0.6 < found.no_speech <= 1


@pytest.mark.parametrize("samples", [0, 1, 1599])
def test_less_than_a_tenth_of_a_second_holds_no_word(samples, recogniser, monkeypatch):
    monkeypatch.setattr(recogniser, "_decode", lambda windows: pytest.fail("the model was run"))
    (found,) = recogniser.recognise([tone(LOW)[:samples]])
    assert (found.text, found.confidence) == ("", 0)
    assert np.isnan(found.no_speech)


def test_digital_silence_is_not_run(recogniser, monkeypatch):
    monkeypatch.setattr(recogniser, "_decode", lambda windows: pytest.fail("the model was run"))
    assert recogniser.recognise([np.zeros(5 * RATE, np.float32)])[0].text == ""


def test_no_wave_is_no_transcript(recogniser):
    assert recogniser.recognise([]) == []


def test_the_words_agree_with_generate(recogniser):
    waves = [tone(pitch, 0.9, seed) for seed, pitch in enumerate((LOW, HIGH, HIGH, LOW), start=10_001)]
    mels = recogniser.extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        reference = [recogniser.model.generate(mel[None], task="transcribe", max_length=24)[0] for mel in mels]
    texts = [recogniser.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in reference]
    assert texts == [found.text for found in recogniser.recognise(waves)] == ["good day", "sad", "sad", "good day"]


@pytest.mark.parametrize(
    ("text", "kept"), [(" ...", ""), (" - ♪ -", ""), ("  \n", ""), (" 3.", "3."), (" 你好。", "你好。")]
)
def test_a_text_without_a_letter_or_a_figure_is_none(text, kept, recogniser, monkeypatch):
    tokens = recogniser.tokenizer(text, add_special_tokens=False).input_ids
    monkeypatch.setattr(recogniser, "_decode", lambda windows: [DecodedWindow(tokens, [-0.1] * len(tokens), 0.0)])
    (found,) = recogniser.recognise([tone(LOW)])
    assert found.text == kept
    assert found.confidence == pytest.approx(np.exp(-0.1) if kept else 0)


@pytest.mark.parametrize(
    ("logs", "no_speech", "silent"),
    [([-2.0, -0.5], 0.7, True), ([-0.9], 0.99, False), ([-3.0], 0.6, False), ([-3.0], float("nan"), False)],
)
def test_silence_is_likely_and_the_words_are_not(logs, no_speech, silent):
    """As in openai/whisper: a window whose words are sure enough stays, however likely silence is."""
    assert DecodedWindow([1] * len(logs), logs, no_speech).silent is silent


def test_a_wave_that_is_not_finite_has_no_confidence(recogniser):
    bad = tone(LOW)
    bad[100] = np.nan
    good, broken = recogniser.recognise([tone(LOW), bad])
    assert good.text == "good day"
    assert broken.text == ""
    assert np.isnan(broken.confidence)


# ---------------------------------------------------------------- batches and windows


def close(one: Transcript, other: Transcript) -> bool:
    numbers = [[found.confidence, found.no_speech] for found in (one, other)]
    return one.text == other.text and np.allclose(*numbers, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("windows", [1, 3, 100])
def test_a_transcript_does_not_depend_on_its_batch(windows, recogniser, monkeypatch):
    lengths = [(LOW, 0.4), (HIGH, 2.6), (DULL, 1.0), (LOW, 1.0), (HIGH, 0.05), (LOW, 3.0), (HIGH, 0.7)]
    waves = [tone(pitch, seconds, seed) for seed, (pitch, seconds) in enumerate(lengths, start=10_001)]
    waves.insert(2, np.zeros(RATE, np.float32))
    alone = [recogniser.recognise([wave])[0] for wave in waves]
    monkeypatch.setattr(recogniser, "windows", windows)
    together = recogniser.recognise(waves)
    assert all(map(close, together, alone))
    assert [found.text for found in together] == [
        "good day", "sad sad sad", "", "", "good day", "", "good day good day good day", "sad",
    ]  # fmt: skip


def test_a_long_wave_is_cut_and_its_confidence_is_over_all_tokens(recogniser):
    parts = [tone(LOW, 1.0, 10_001), tone(HIGH, 0.5, 10_002)]
    one, other = recogniser.recognise(parts)
    (whole,) = recogniser.recognise([np.concatenate(parts)])
    assert whole.text == "good day sad"
    assert whole.confidence == pytest.approx((one.confidence**2 * other.confidence) ** (1 / 3))  # two tokens and one
    assert whole.no_speech == pytest.approx(min(one.no_speech, other.no_speech))


def test_windows_without_speech_say_nothing(recogniser):
    parts = [tone(DULL, 1.0, 10_001), np.zeros(RATE, np.float32), tone(LOW, 1.0, 10_002), tone(DULL, 0.05)]
    (whole,) = recogniser.recognise([np.concatenate(parts)])
    assert close(whole, recogniser.recognise(parts[2:3])[0])


def test_a_model_that_never_ends_is_stopped(recogniser, monkeypatch):
    """The positions of this model are 24, the prompt takes four."""
    never = recogniser.banned.clone()
    never[recogniser.marks.end] = True
    monkeypatch.setattr(recogniser, "banned", never)
    (spoken,) = recogniser._decode([tone(LOW)])
    assert len(spoken.tokens) == len(spoken.log_probabilities) == 20


def test_cost_and_budget(recogniser, whisper, tmp_path):
    from transformers import WhisperFeatureExtractor

    assert [recogniser.cost(tone(LOW, seconds)) for seconds in (0.0, 0.2, 1.0, 1.1)] == [1, 1, 1, 2]
    shutil.copytree(whisper, tmp_path / "real")
    WhisperFeatureExtractor().save_pretrained(tmp_path / "real")
    real = load_cpu(tmp_path / "real")
    assert [real.cost(tone(LOW, seconds)) for seconds in (1.0, 30.0, 61.0)] == [30, 30, 90]
    assert (real.windows, real.budget) == (4, 120)
    assert [(real.halve(), real.windows) for _ in range(3)] == [(True, 2), (True, 1), (False, 1)]


# ---------------------------------------------------------------- languages and kinds of checkpoint


def test_the_model_finds_the_language_unless_it_is_told(whisper):
    waves = [tone(LOW, 0.8, 10_001), tone(HIGH, 0.8, 10_002)]
    for language, texts in (("en", ["good day", "so"]), ("Chinese", ["so", "sad"])):
        assert [found.text for found in load_cpu(whisper, language).recognise(waves)] == texts


def test_a_language_that_the_model_does_not_know(whisper):
    with pytest.raises(MertoolError, match="unknown language 'fr': valid: en, zh"):
        load_cpu(whisper, "french")


def test_an_english_only_checkpoint(changed):
    """Its vocabulary names the languages, but its prompt has neither a language nor a task."""
    folder = changed({"is_multilingual": False, "lang_to_id": None, "task_to_id": None})
    found = load_cpu(folder, "en")
    assert found.marks.languages == ()
    assert found.most_tokens == 22
    waves = [tone(LOW, 0.8, 10_001), tone(HIGH, 0.8, 10_002), tone(DULL, 0.8, 10_003)]
    assert [transcript.text for transcript in found.recognise(waves)] == ["good day", "sad", ""]
    with pytest.raises(MertoolError, match="unknown language 'zh': valid: en"):
        load_cpu(folder, "zh")


def test_a_checkpoint_that_lost_its_generation_config(changed):
    found = load_cpu(changed(None))
    assert [transcript.text for transcript in found.recognise([tone(HIGH, 0.8, 10_001)])] == ["sad"]


def test_a_vocabulary_without_no_speech(whisper, recogniser):
    marks = dataclasses.replace(recogniser.marks, no_speech=None)
    found = Recogniser(recogniser.model, recogniser.extractor, recogniser.tokenizer, marks)
    (transcript,) = found.recognise([tone(LOW, 0.8, 10_001)])
    assert transcript.text == "good day"
    assert np.isnan(transcript.no_speech)


def test_only_words_and_the_end_are_ever_emitted(recogniser):
    ids = recogniser.tokenizer.get_vocab()
    allowed = {number for number in range(len(recogniser.banned)) if not recogniser.banned[number]}
    assert allowed == set(range(267)) - {ids["*"]} | {ids["<|endoftext|>"]}
    assert recogniser.banned_first[ids["<|endoftext|>"]]


def test_a_folder_without_a_whisper(tiny_encoders):
    with pytest.raises(ValueError, match=r"a Whisper is needed to recognise speech.* type wav2vec2"):
        load_cpu(tiny_encoders["wav2vec2"])


def test_a_whisper_without_a_tokenizer(tiny_encoders):
    with pytest.raises(ValueError, match="tokenizer"):
        load_cpu(tiny_encoders["whisper"])
