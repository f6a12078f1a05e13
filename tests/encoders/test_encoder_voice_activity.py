"""Voice activity detection: signals without speech have none, speech has some also when it is quiet or noisy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.whisper import FOLDER, LOW, RATE, tone

from mertool.encoders import recognition
from mertool.encoders.asr import load
from mertool.encoders.recognition import RecognitionSettings, find_vad_weights, vad_digest
from mertool.encoders.voice_activity import VoiceActivity
from mertool.errors import MertoolError

RAVDESS = Path(__file__).parents[3] / "shared" / "data" / "ravdess"
needs_silero = pytest.mark.skipif(find_vad_weights() is None, reason="silero-vad is not installed")
pytestmark = needs_silero


@pytest.fixture(scope="module")
def vad() -> VoiceActivity:
    return VoiceActivity.load()


def signals(seconds: float) -> dict[str, np.ndarray]:
    """Return signals without speech."""
    random = np.random.default_rng(0)
    times = np.arange(round(seconds * RATE)) / RATE
    found = {f"noise {level} dB": random.standard_normal(len(times)) * 10 ** (level / 20) for level in (-60, -30, -10)}
    found |= {f"tone {pitch} Hz": 0.1 * np.sin(2 * np.pi * pitch * times) for pitch in (50, 300, 440)}
    found["clicks"] = np.where(np.arange(len(times)) % (RATE // 4) == 0, 0.5, 0.0)
    found["silence"] = np.zeros(len(times))
    found["offset"] = np.full(len(times), 0.2)
    return {name: waveform.astype(np.float32) for name, waveform in found.items()}


@pytest.mark.parametrize("seconds", [0.1, 3.0])
@pytest.mark.parametrize("name", signals(0.1))
def test_there_is_no_speech_in(name, seconds, vad):
    assert vad.speech_probability(signals(seconds)[name]) < 0.2
    assert not vad.has_speech(signals(seconds)[name])


def test_values_that_are_not_finite_are_left_to_the_recogniser(vad):
    assert vad.has_speech(np.full(RATE, np.nan, np.float32))


def test_the_lstm_continues_over_frames_and_the_last_one_is_padded(vad):
    waveform = torch.from_numpy(tone(LOW, 0.5))
    assert vad(waveform).shape == (16,)  # 8,000 samples are 15.6 frames of 512
    torch.testing.assert_close(vad(waveform[: 5 * 512]), vad(waveform)[:5])


@pytest.mark.skipif(not RAVDESS.is_dir(), reason="the recordings are not there")
@pytest.mark.parametrize("gain", [1.0, 0.001])
@pytest.mark.parametrize("noisy", [False, True])
def test_there_is_speech_in_recordings(gain, noisy, vad):
    from mertool.media import read_audio

    for actor in range(1, 25):
        waveform = read_audio(RAVDESS / "flac" / f"03-01-{1 + actor % 8:02}-01-01-01-{actor:02}.flac")
        if noisy:  # at 5 dB
            noise = np.random.default_rng(actor).standard_normal(len(waveform)) * waveform.std() * 10 ** (-5 / 20)
            waveform = (waveform + noise).astype(np.float32)
        assert vad.has_speech(waveform * np.float32(gain)), actor


# ---------------------------------------------------------------- in the recogniser


def load_with(vad: str | None):
    settings = RecognitionSettings(vad=vad)
    return load(FOLDER, device=torch.device("cpu"), dtype=torch.float32, settings=settings)


def test_a_window_without_speech_is_not_transcribed(monkeypatch):
    recogniser = load_with(vad_digest())
    monkeypatch.setattr(recogniser, "_decode", lambda windows: pytest.fail("the model was run"))
    transcript = recogniser.transcribe([tone(LOW, 3.0)])[0]
    assert (transcript.text, transcript.confidence, transcript.language) == ("", 0, "")


def test_only_windows_with_speech_are_transcribed(monkeypatch):
    """The windows of the tiny Whisper last 1 s; speech is said to be in the loud one."""
    recogniser = load_with(vad_digest())
    monkeypatch.setattr(recogniser.vad, "has_speech", lambda window: window.max() > 0.3)
    low = tone(LOW, 1.0, 10_001)
    waveform = np.concatenate([low * (0.2 / low.max()), low * (0.4 / low.max()), low * (0.2 / low.max())])
    transcript = recogniser.transcribe([waveform])[0]
    assert (transcript.text, transcript.language) == ("good day", "en")


def test_other_weights_are_refused():
    with pytest.raises(MertoolError, match=r"silero-vad, which is here other weights .*pip install 'mertool\[asr\]'"):
        load_with("0" * 64)


def test_weights_of_another_network_are_refused(monkeypatch, tmp_path):
    (tmp_path / "vad.safetensors").write_bytes(b"no tensors")
    monkeypatch.setattr("mertool.encoders.voice_activity.find_vad_weights", lambda: tmp_path / "vad.safetensors")
    with pytest.raises(MertoolError, match=r"is not the network that mertool knows .*--no-vad"):
        VoiceActivity.load()


def test_settings_with_voice_activity_need_it_installed(monkeypatch):
    digest = vad_digest()
    monkeypatch.setattr(recognition, "find_vad_weights", lambda: None)
    with pytest.raises(MertoolError, match=r"silero-vad, which is here not installed: pip install 'mertool\[asr\]'"):
        RecognitionSettings(vad=digest).check_available("features 'text'")
    assert recognition.resolve_recognition(str(FOLDER)).settings.vad is None
