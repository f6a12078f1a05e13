"""Speech recognition with a tiny Whisper that has learned two tones: text, silence, and fallback to sampling."""

import dataclasses
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.whisper import DULL, HIGH, LOW, RATE, tone
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mertool.encoders.asr import DecodedWindow, Recogniser, Transcript, compression_ratio, load
from mertool.encoders.recognition import RecognitionSettings
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
    settings = RecognitionSettings(language=language)
    return load(folder, device=torch.device("cpu"), dtype=torch.float32, settings=settings)


def decoded(text: str, logs: list[float], no_speech: float = 0.0, language: str = "en") -> DecodedWindow:
    """Return a window whose text has as many tokens as log probabilities."""
    return DecodedWindow(
        text=text, tokens=[1] * len(logs), log_probabilities=logs, no_speech=no_speech, language=language
    )


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(("pitch", "text"), [(LOW, "good day"), (HIGH, "sad")])
def test_what_is_said(pitch, text, recogniser):
    (transcript,) = recogniser.transcribe([tone(pitch, 0.8, seed=10_001)])
    assert transcript.text == text
    assert 0.7 < transcript.confidence <= 1
    assert 0 <= transcript.no_speech < 0.2


def test_half_precision_says_the_same(whisper):
    transcripts = load(whisper, device=torch.device("cpu"), dtype=torch.bfloat16).transcribe(
        [tone(LOW, 0.8, 10_001), tone(DULL)]
    )
    assert [transcript.text for transcript in transcripts] == ["good day", ""]
    assert 0.7 < transcripts[0].confidence <= 1


def test_nobody_speaks(recogniser):
    (transcript,) = recogniser.transcribe([tone(DULL, 0.8, seed=10_001)])
    assert (transcript.text, transcript.confidence) == ("", 0)
    assert 0.6 < transcript.no_speech <= 1


@pytest.mark.parametrize("samples", [0, 1, 1599])
def test_less_than_a_tenth_of_a_second_holds_no_word(samples, recogniser, monkeypatch):
    monkeypatch.setattr(recogniser, "_decode", lambda windows: pytest.fail("the model was run"))
    (transcript,) = recogniser.transcribe([tone(LOW)[:samples]])
    assert (transcript.text, transcript.confidence) == ("", 0)
    assert np.isnan(transcript.no_speech)


def test_digital_silence_is_not_run(recogniser, monkeypatch):
    monkeypatch.setattr(recogniser, "_decode", lambda windows: pytest.fail("the model was run"))
    assert recogniser.transcribe([np.zeros(5 * RATE, np.float32)])[0].text == ""


def test_no_wave_is_no_transcript(recogniser):
    assert recogniser.transcribe([]) == []


def test_the_words_agree_with_generate_on_spectrograms(recogniser, whisper):
    """The encoder's outputs are computed once and passed to `generate`; the checkpoint's own settings are not used."""
    model = WhisperForConditionalGeneration.from_pretrained(whisper).float()
    waves = [tone(pitch, 0.9, seed) for seed, pitch in enumerate((LOW, HIGH, HIGH, LOW), start=10_001)]
    mels = recogniser.extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        reference = [model.generate(mel[None], task="transcribe", max_length=24)[0] for mel in mels]
    texts = [recogniser.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in reference]
    assert texts == ["good day", "sad", "sad", "good day"]
    assert [transcript.text for transcript in recogniser.transcribe(waves)] == texts


@pytest.mark.parametrize(
    ("text", "expected"), [(" ...", ""), (" - ♪ -", ""), ("  \n", ""), (" 3.", "3."), (" 你好。", "你好。")]
)
def test_a_text_without_a_letter_or_a_figure_is_none(text, expected, recogniser, monkeypatch):
    monkeypatch.setattr(recogniser, "_decode", lambda windows: [decoded(text, [-0.1, -0.1])])
    (transcript,) = recogniser.transcribe([tone(LOW)])
    assert transcript.text == expected
    assert transcript.confidence == pytest.approx(np.exp(-0.1) if expected else 0)


@pytest.mark.parametrize(
    ("logs", "no_speech", "silent"),
    [([-2.0, -0.5], 0.7, True), ([-0.9], 0.99, False), ([-3.0], 0.6, False), ([-3.0], float("nan"), False)],
)
def test_silence_is_likely_and_the_words_are_not(logs, no_speech, silent):
    """As in openai/whisper: a window whose words are sure enough stays, however likely silence is."""
    assert decoded("so", logs, no_speech).is_silent is silent


def test_a_wave_that_is_not_finite_has_no_confidence(recogniser):
    bad = tone(LOW)
    bad[100] = np.nan
    good, broken = recogniser.transcribe([tone(LOW), bad])
    assert good.text == "good day"
    assert broken.text == ""
    assert np.isnan(broken.confidence)


# ---------------------------------------------------------------- batches and windows


def close(first: Transcript, second: Transcript) -> bool:
    numbers = [[transcript.confidence, transcript.no_speech] for transcript in (first, second)]
    return first.text == second.text and np.allclose(*numbers, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("windows", [1, 3, 100])
def test_a_transcript_does_not_depend_on_its_batch(windows, recogniser, monkeypatch):
    lengths = [(LOW, 0.4), (HIGH, 2.6), (DULL, 1.0), (LOW, 1.0), (HIGH, 0.05), (LOW, 3.0), (HIGH, 0.7)]
    waves = [tone(pitch, seconds, seed) for seed, (pitch, seconds) in enumerate(lengths, start=10_001)]
    waves.insert(2, np.zeros(RATE, np.float32))
    alone = [recogniser.transcribe([wave])[0] for wave in waves]
    monkeypatch.setattr(recogniser, "windows", windows)
    together = recogniser.transcribe(waves)
    assert all(map(close, together, alone))
    assert [transcript.text for transcript in together] == [
        "good day", "sad sad sad", "", "", "good day", "", "good day good day good day", "sad",
    ]  # fmt: skip


def test_a_long_wave_is_cut_and_its_confidence_is_over_all_tokens(recogniser):
    waves = [tone(LOW, 1.0, 10_001), tone(HIGH, 0.5, 10_002)]
    first, second = recogniser.transcribe(waves)
    (joined,) = recogniser.transcribe([np.concatenate(waves)])
    assert joined.text == "good day sad"
    # The first text has two tokens, the second one.
    assert joined.confidence == pytest.approx((first.confidence**2 * second.confidence) ** (1 / 3))
    assert joined.no_speech == pytest.approx(min(first.no_speech, second.no_speech))


def test_windows_without_speech_say_nothing(recogniser):
    waves = [tone(DULL, 1.0, 10_001), np.zeros(RATE, np.float32), tone(LOW, 1.0, 10_002), tone(DULL, 0.05)]
    (joined,) = recogniser.transcribe([np.concatenate(waves)])
    assert close(joined, recogniser.transcribe(waves[2:3])[0])


@pytest.fixture
def endless(whisper: Path) -> Recogniser:
    """A recogniser that never emits the end: it repeats its words, which fails the test of the compression ratio."""
    recogniser = load_cpu(whisper)
    suppressed, first = recogniser.tokens.suppressed.clone(), recogniser.tokens.suppressed_first.clone()
    suppressed[recogniser.tokens.end] = first[recogniser.tokens.end] = True
    recogniser.tokens = dataclasses.replace(recogniser.tokens, suppressed=suppressed, suppressed_first=first)
    recogniser.model.generation_config = recogniser.tokens.generation_config()
    return recogniser


def test_a_model_that_never_ends_is_stopped(endless):
    """The positions of this model are 24, the prompt takes four."""
    (window,) = endless._decode([tone(LOW)])
    assert len(window.tokens) == len(window.log_probabilities) == endless.max_tokens == 20


# ---------------------------------------------------------------- temperature fallback


REPEATED = "so it goes. " * 12


@pytest.mark.parametrize(
    ("text", "logs", "failed"),
    [
        ("we lost the dog", [-0.5, -0.9], False),
        ("we lost the dog", [-0.5, -1.6], True),  # unlikely
        (REPEATED, [-0.1], True),
        ("no no no", [-0.1], False),
        (REPEATED, [float("nan")], False),  # sampling from NaN is an error
        ("", [-0.1], False),
    ],
)
def test_unlikely_and_repeated_texts_fail(text, logs, failed):
    assert decoded(text, logs).is_failed is failed


@pytest.mark.parametrize(
    ("text", "repeats"),
    [("", False), ("we lost the dog", False), ("no no no", False), (" 5," * 40, True), ("很好" * 40, True)],
)
def test_the_compression_ratio_finds_repetitions(text, repeats):
    assert (compression_ratio(text) > 2.4) is repeats


def test_the_compression_ratio_is_of_bytes():
    assert compression_ratio("我很好") == 9 / len(zlib.compress("我很好".encode()))


def test_a_text_that_fails_after_sampling_is_left_out(recogniser, monkeypatch):
    windows = [decoded(REPEATED, [-0.1] * 40), decoded(" good day", [-0.1] * 2), decoded(" la", [-3.0], 0.1)]
    monkeypatch.setattr(recogniser, "_decode", lambda _: windows)
    (transcript,) = recogniser.transcribe([tone(LOW, 3.0)])
    assert transcript.text == "good day"
    assert transcript.confidence == pytest.approx(np.exp(-0.1))


def test_the_temperature_rises_until_a_text_passes(recogniser, monkeypatch):
    """Greedy decoding fails, and so do the temperatures below 0.6."""
    temperatures = []
    monkeypatch.setattr(
        recogniser,
        "_generate",
        lambda *_, temperature=0.0, **__: temperatures.append(temperature) or [[temperature]],
    )
    monkeypatch.setattr(
        recogniser, "_score", lambda *arguments: [decoded("sad", [-0.1 if arguments[2][0][0] >= 0.6 else -2.0])]
    )
    assert recogniser.transcribe([tone(LOW)])[0].text == "sad"
    assert temperatures == [0.0, 0.2, 0.4, 0.6]


def test_sampling_is_the_same_in_any_batch_and_leaves_the_random_state(endless, monkeypatch):
    waves = [tone(LOW, 0.8, 10_001), tone(HIGH, 0.8, 10_002), tone(LOW, 0.7, 10_003)]
    state = torch.get_rng_state()
    alone = [endless.transcribe([wave])[0] for wave in waves]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert all(map(close, endless.transcribe(waves), alone))
    monkeypatch.setattr("mertool.encoders.asr.DecodedWindow.is_failed", False)
    greedy = [endless.transcribe([wave])[0].text for wave in waves]
    assert greedy != [transcript.text for transcript in alone]


def test_only_a_window_that_fails_is_decoded_again(recogniser, monkeypatch):
    sampled = []
    sample = Recogniser._decode_by_sampling
    monkeypatch.setattr(
        Recogniser,
        "_decode_by_sampling",
        lambda self, *arguments: sampled.append(arguments[1]) or sample(self, *arguments),
    )
    recogniser.transcribe([tone(LOW, 0.8, 10_001), tone(HIGH, 0.8, 10_002), tone(DULL, 0.8, 10_003)])
    assert sampled == []
    monkeypatch.setattr("mertool.encoders.asr.LOG_PROBABILITY_THRESHOLD", 0.0)  # nothing is likely enough
    recogniser.transcribe([tone(LOW, 0.8, 10_001), tone(HIGH, 0.8, 10_002), tone(DULL, 0.8, 10_003)])
    assert sampled == ["<|en|>", "<|zh|>"]  # a silent window is not


def test_confidence_is_at_temperature_one_however_the_text_was_sampled(recogniser):
    mels = recogniser.extractor([tone(LOW, 0.8, 10_001)], sampling_rate=RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        encoded = recogniser.model.get_encoder()(mels).last_hidden_state
        (greedy,) = recogniser._decode([tone(LOW, 0.8, 10_001)])
        (scored,) = recogniser._score(encoded, ["<|en|>"], [greedy.tokens])
        generated = recogniser.model.generate(
            encoder_outputs=BaseModelOutput(encoded),
            language="<|en|>",
            task="transcribe",
            max_new_tokens=20,
            output_scores=True,
            return_dict_in_generate=True,
            use_cache=False,
        )
        scores = recogniser.model.compute_transition_scores(
            generated.sequences, generated.scores, normalize_logits=True
        )
    np.testing.assert_allclose(scored.log_probabilities, scores[0], atol=1e-5)


# ---------------------------------------------------------------- budget


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
        assert [transcript.text for transcript in load_cpu(whisper, language).transcribe(waves)] == texts


def test_a_language_that_the_model_does_not_know(whisper):
    with pytest.raises(MertoolError, match="unknown language 'fr': valid: en, zh"):
        load_cpu(whisper, "french")


def test_an_english_only_checkpoint(changed):
    """Its vocabulary names the languages, but its prompt has neither a language nor a task."""
    folder = changed({"is_multilingual": False, "lang_to_id": None, "task_to_id": None})
    recogniser = load_cpu(folder, "en")
    assert recogniser.tokens.languages == {}
    assert recogniser.max_tokens == 22
    waves = [tone(LOW, 0.8, 10_001), tone(HIGH, 0.8, 10_002), tone(DULL, 0.8, 10_003)]
    assert [transcript.text for transcript in recogniser.transcribe(waves)] == ["good day", "sad", ""]
    with pytest.raises(MertoolError, match="unknown language 'zh': valid: en"):
        load_cpu(folder, "zh")


def test_a_checkpoint_that_lost_its_generation_config(changed):
    recogniser = load_cpu(changed(None))
    assert [transcript.text for transcript in recogniser.transcribe([tone(HIGH, 0.8, 10_001)])] == ["sad"]


def test_a_vocabulary_without_no_speech(whisper, recogniser):
    tokens = dataclasses.replace(recogniser.tokens, no_speech=None)
    changed = Recogniser(
        recogniser.model, extractor=recogniser.extractor, tokenizer=recogniser.tokenizer, tokens=tokens
    )
    (transcript,) = changed.transcribe([tone(LOW, 0.8, 10_001)])
    assert transcript.text == "good day"
    assert np.isnan(transcript.no_speech)


def test_only_words_and_the_end_are_ever_emitted(recogniser):
    ids = recogniser.tokenizer.get_vocab()
    tokens = recogniser.tokens
    allowed = set((~tokens.suppressed).nonzero()[:, 0].tolist())
    assert allowed == set(range(267)) - {ids["*"]} | {ids["<|endoftext|>"]}
    assert tokens.suppressed_first[ids["<|endoftext|>"]]


def test_a_folder_without_a_whisper(tiny_encoders):
    with pytest.raises(ValueError, match=r"a Whisper is needed to recognise speech.* type wav2vec2"):
        load_cpu(tiny_encoders["wav2vec2"])


def test_a_whisper_without_a_tokenizer(tiny_encoders):
    with pytest.raises(ValueError, match="tokenizer"):
        load_cpu(tiny_encoders["whisper"])
