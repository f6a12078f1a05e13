"""Noise: what a clip gets is drawn by its id; the ratio of audio_settings to noise is what was drawn."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mertool.errors import ClipError, MertoolError
from mertool.extraction.decoding import DecoderLimits, decode_audio, decode_faces, find_noise_faults
from mertool.faces import blur_frames
from mertool.manifest import Clip, Manifest
from mertool.noise import BABBLE_VOICES, BLUR_FACTORS, SNR_RANGE, NoiseCorruption, NoiseMix, add_noise, check_noise

RATE = 16_000


def wave(seed, seconds=1.0, loud=0.1):
    return (loud * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def reader(sounds):
    """Return a stand-in for `read_audio`; other files cannot be read."""

    def read(path):
        if path.name not in sounds:
            raise ClipError("no_audio")
        return sounds[path.name]

    return read


def mixture(*names, start=0.0, snr=7.0):
    return NoiseMix(files=tuple(map(Path, names)), start=start, snr=snr)


def decibels(clean, noisy):
    return 10 * np.log10(np.mean(clean.astype(float) ** 2) / np.mean((noisy.astype(float) - clean) ** 2))


@pytest.mark.parametrize("snr", [5.0, 10.0])
@pytest.mark.parametrize("seconds", [0.3, 4.0])
def test_the_snr_is_the_requested_one(snr, seconds):
    clean = wave(0)
    noisy = add_noise(clean, mixture("n", start=0.5, snr=snr), reader({"n": wave(1, seconds, loud=3.0)}))
    assert noisy.dtype == np.float32 and noisy.shape == clean.shape
    assert decibels(clean, noisy) == pytest.approx(snr, abs=0.01)


def test_several_voices_have_the_same_level():
    loud, soft = wave(1, loud=0.5), wave(2, loud=0.01)
    clean = wave(0)
    both = add_noise(clean, mixture("a", "b"), reader({"a": loud, "b": soft})) - clean
    shares = [abs(np.corrcoef(both, voice)[0, 1]) for voice in (loud, soft)]
    assert shares == pytest.approx([np.sqrt(0.5)] * 2, abs=0.02)


def test_noise_that_cannot_be_mixed_in_is_never_passed_over():
    sounds = {"silent": np.zeros(RATE, np.float32), "nan": np.full(RATE, np.nan, np.float32), "n": wave(1)}
    for name in ("gone", "silent", "nan"):
        with pytest.raises(ClipError, match=f"noise cannot be mixed in: {name}"):
            add_noise(wave(0), mixture("n", name), reader(sounds))


def test_a_silent_clip_has_no_snr():
    with pytest.raises(ClipError, match="silent"):
        add_noise(np.full(RATE, 0.1, np.float32), mixture("n"), reader({"n": wave(1)}))


def test_a_pause_of_the_noise_is_not_mixed_in():
    """Of ten seconds of noise only the middle one sounds, and the excerpt that was drawn is before it."""
    noise = np.zeros(10 * RATE, np.float32)
    noise[5 * RATE : 6 * RATE] = wave(1)
    clean = wave(0)
    assert decibels(clean, add_noise(clean, mixture("n", snr=6.0), reader({"n": noise}))) == pytest.approx(
        6.0, abs=0.01
    )


@pytest.mark.parametrize("length", [2, 160, 1600])
def test_very_short_noise_is_looped(length):
    clean, noise = wave(0), wave(1)[:length]
    noisy = add_noise(clean, mixture("n", start=0.9), reader({"n": noise}))
    added = noisy - clean
    np.testing.assert_allclose(added[:length], added[length : 2 * length], atol=1e-5)
    assert decibels(clean, noisy) == pytest.approx(7.0, abs=0.01)


def test_a_constant_offset_is_no_noise_and_no_signal():
    clean = wave(0)
    expected = add_noise(clean, mixture("n"), reader({"n": wave(1)})) - clean
    found = add_noise(clean, mixture("n"), reader({"n": wave(1) + 0.5})) - clean
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_files_that_are_no_noise_are_named(tmp_path):
    good = {"good": wave(1), "short": wave(1)[:20], "faint": 1e-4 * wave(1)}
    bad = {
        "zero": np.zeros(RATE, np.float32),
        "constant": np.full(RATE, 0.5, np.float32),
        "quieter": 1e-8 * wave(1),
        "nan": np.where(np.arange(RATE) == 7, np.nan, wave(1)),
        "inf": np.where(np.arange(RATE) == 7, np.inf, wave(1)),
    }
    for name, samples in {**good, **bad}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples.astype(np.float32), RATE, subtype="FLOAT")
    (tmp_path / "broken.wav").write_bytes(b"RIFF no audio")
    files = sorted(tmp_path.glob("*.wav"))
    faults = find_noise_faults(files, DecoderLimits(workers=1))
    assert {path.stem for path in faults} == {*bad, "broken"}
    assert "digital silence" in faults[tmp_path / "zero.wav"]
    assert "NaN or infinite" in faults[tmp_path / "nan.wav"]


def test_noise_of_absurd_length_is_refused(monkeypatch):
    monkeypatch.setattr("mertool.noise.MAX_NOISE_SECONDS", 2.0)
    check_noise(wave(1, 2.0))
    with pytest.raises(ClipError, match="longer than"):
        check_noise(wave(1, 2.1))


def test_a_clip_is_never_its_own_noise(corpus, tmp_path):
    clip = corpus.clips[0]
    alias = tmp_path / "alias.wav"
    alias.symlink_to(clip.path)
    with pytest.raises(MertoolError, match="is the only file of noise"):
        NoiseCorruption(files=(alias,), speakers=(None,)).audio_settings(clip)


def test_a_sum_that_would_clip_is_scaled_down():
    clean = np.clip(wave(0, loud=0.9), -1, 1)
    noisy = add_noise(clean, mixture("n"), reader({"n": wave(1)}))
    assert np.abs(noisy).max() == pytest.approx(1.0)


@pytest.fixture
def corpus(tmp_path):
    """Eight clips of two speakers."""
    clips = []
    for number in range(8):
        path = tmp_path / f"c{number}.wav"
        soundfile.write(path, wave(number), RATE)
        clips.append(Clip(clip=path.stem, path=path, speaker=f"s{number % 2}"))
    return Manifest(tuple(clips), tmp_path)


def test_the_noise_of_a_clip_does_not_depend_on_the_other_clips(corpus):
    whole, part = (NoiseCorruption.babble(manifest, seed=3) for manifest in (corpus, Manifest(corpus.clips, Path("x"))))
    for clip in corpus.clips:
        assert whole.audio_settings(clip) == part.audio_settings(clip)
        assert whole.video_settings(clip) == part.video_settings(clip)
    draws = [whole.audio_settings(clip)["noise"] for clip in corpus.clips]
    assert len({draw.snr for draw in draws}) == 8
    assert all(SNR_RANGE[0] <= draw.snr <= SNR_RANGE[1] for draw in draws)
    assert NoiseCorruption.babble(corpus, seed=4).audio_settings(corpus.clips[0]) != whole.audio_settings(
        corpus.clips[0]
    )


def test_babble_is_of_other_clips_and_other_speakers(corpus):
    noise = NoiseCorruption.babble(corpus)
    speakers = {clip.path: clip.speaker for clip in corpus.clips}
    for clip in corpus.clips:
        drawn = noise.audio_settings(clip)["noise"]
        assert len(drawn.files) == min(BABBLE_VOICES, 4)
        assert {speakers[path] for path in drawn.files} == {"s1" if clip.speaker == "s0" else "s0"}


def test_blurs_are_those_of_the_challenge():
    clips = [Clip(clip=f"c{number}", path=Path("x")) for number in range(300)]
    counts = np.bincount(
        [NoiseCorruption(files=(), speakers=()).video_settings(clip)["blur_factor"] for clip in clips], minlength=5
    )[list(BLUR_FACTORS)]
    assert counts.sum() == 300
    assert counts.min() > 70


def test_features_depend_on_the_audio_and_the_seed_but_not_on_paths(corpus, tmp_path):
    noise = NoiseCorruption.from_folder(corpus.source)
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for clip in corpus.clips:
        (copy / clip.path.name).write_bytes(clip.path.read_bytes())
    assert NoiseCorruption.from_folder(copy).to_json("audio") == noise.to_json("audio")
    assert NoiseCorruption.from_folder(copy, seed=1).to_json("video") != noise.to_json("video")
    soundfile.write(copy / "c0.wav", wave(99), RATE)
    assert NoiseCorruption.from_folder(copy).to_json("audio") != noise.to_json("audio")
    assert NoiseCorruption.from_folder(copy).to_json("video") == noise.to_json("video")


def test_no_folder_and_too_few_clips(tmp_path, corpus):
    with pytest.raises(MertoolError, match=r"--noise .*gone is not a folder: give a folder of audio files, or babble"):
        NoiseCorruption.from_folder(tmp_path / "gone")
    with pytest.raises(MertoolError, match="too few files with audio"):
        NoiseCorruption.babble(Manifest(corpus.clips[:1], Path("m.csv"))).without([])


def test_the_decoder_mixes_and_blurs(demo, corpus):
    clip = demo / "clips" / "spk01_001.mp4"
    clean = decode_audio(clip, None, None).content
    noisy = decode_audio(clip, None, None, noise=NoiseMix(files=(corpus.clips[0].path,), start=0.0, snr=5.0)).content
    assert decibels(clean, noisy) == pytest.approx(5.0, abs=0.01)
    sharp, soft = (
        decode_faces(clip, None, None, fps=1.0, max_frames=2, blur_factor=blur).content.astype(float) for blur in (1, 4)
    )
    assert np.abs(np.diff(soft[0], axis=1)).mean() < 0.8 * np.abs(np.diff(sharp[0], axis=1)).mean()


def test_a_blurred_frame_has_its_size_and_its_brightness():
    frame = np.random.default_rng(0).integers(0, 256, (37, 50, 3)).astype(np.uint8)
    ((moment, soft),) = blur_frames(iter([(0.5, frame)]), 4)
    assert (moment, soft.shape, soft.dtype) == (0.5, frame.shape, np.uint8)
    assert soft.mean() == pytest.approx(frame.mean(), abs=2)
    assert soft.std() < 0.5 * frame.std()
    ((_, same),) = blur_frames(iter([(0.5, frame)]), 1)
    assert same is frame
