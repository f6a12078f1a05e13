"""Decoder processes that hang, die or fail cost only their own clip."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from mertool.errors import ClipError
from mertool.extraction import decoding as decode
from mertool.extraction.decoding import (
    DecodedClip,
    DecoderLimits,
    DecoderPool,
    decode_audio,
    decode_faces,
    decode_text,
    worker_count,
)
from mertool.extraction.plan import WorkItem
from mertool.manifest import Clip


def obey(path, start, end):
    """A decoder that does what the file's name says: `hang-1` hangs, `ok-1` returns the number 1."""
    action, _, number = path.stem.partition("-")
    if action == "hang":
        time.sleep(60)
        path.with_suffix(".finished").touch()
    if action == "die":
        os._exit(7)
    if action in ERRORS:
        raise ERRORS[action]
    return DecodedClip(np.full(4, float(number)))


ERRORS = {
    "refuse": ClipError("no_audio", "none here"),
    "value": ValueError("odd bytes"),
    "memory": MemoryError("huge frame"),
    "key": KeyError("codec"),
}


def take_memory(path, start, end):
    """Ask for more memory than a decoder may have; it is not touched, so that the machine need not have it."""
    return DecodedClip(np.empty(17 << 30, np.uint8)[:1].copy())


def number_once_released(path, start, end):
    """The clip's number; clip 0 is finished only when a file named `released` is there."""
    while path.stem == "0" and not path.with_name("released").exists():
        time.sleep(0.01)
    return DecodedClip(int(path.stem))


def with_settings(path, start, end, fps, most):
    return DecodedClip((start, end, fps, most))


def items(tmp_path, *names):
    return [WorkItem(Clip(clip=name, path=tmp_path / f"{name}.mp4"), "") for name in names]


def read_name(path, start, end):
    return DecodedClip(path.name)


def decode_all(clips, decode=obey, timeout=60.0, **settings):
    """The result of every clip by its id."""
    with DecoderPool(DecoderLimits(2, timeout)) as decoders:
        return {item.clip.clip: result for item, result in decoders.read(clips, decode, **settings)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of clips that fail among good ones."""
    names = ["ok-1", "ok-2", "die-1", "ok-3", "refuse-1", "value-1", "memory-1", "ok-4", "die-2", "ok-5"]
    return decode_all(items(tmp_path_factory.mktemp("clips"), *names))


def test_good_clips_are_decoded_beside_bad_ones(results):
    assert [results[f"ok-{n}"].content[0] for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert len(results) == 10


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("die-1", "crashed", "exit code 7"),
        ("die-2", "crashed", "exit code 7"),
        ("refuse-1", "no_audio", "none here"),
        ("value-1", "unreadable", "ValueError: odd bytes"),
        ("memory-1", "too_large", "more than 16 GiB of memory"),
    ],
)
def test_each_bad_clip_has_its_reason(name, reason, message, results):
    error = results[name]
    assert isinstance(error, ClipError)
    assert error.reason == reason
    assert message in error.message


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce it, and Windows has no such limit")
def test_a_decoder_cannot_take_the_memory_of_the_machine(tmp_path):
    (error,) = decode_all(items(tmp_path, "take-1"), take_memory).values()
    assert (error.reason, error.message) == ("too_large", "decoding takes more than 16 GiB of memory")


def test_a_hanging_decoder_is_killed_at_the_limit(tmp_path):
    (error,) = decode_all(items(tmp_path, "hang-1"), timeout=0.5).values()
    assert (error.reason, error.message) == ("timeout", "decoding took longer than 0.5 s")
    assert not list(tmp_path.iterdir())


def test_an_unforeseen_error_of_a_decoder_is_raised(tmp_path):
    """A KeyError is a bug of ours, not a damaged file."""
    with pytest.raises(KeyError):
        decode_all(items(tmp_path, "key-1"))


def test_a_slow_clip_does_not_block_the_other_ones(tmp_path):
    clips = items(tmp_path, *map(str, range(12)))
    order = []
    with DecoderPool(DecoderLimits(2, 60.0)) as decoders:
        for item, decoded in decoders.read(clips, number_once_released):
            (tmp_path / "released").touch()
            order.append((item.clip.clip, decoded.content))
    assert sorted(order) == sorted((str(n), n) for n in range(12))
    assert order[0][0] != "0"


def test_decoders_read_again_after_they_have_read(tmp_path):
    with DecoderPool(DecoderLimits(2, 30.0)) as decoders:
        decoders.start()
        for name in ("ok-1", "ok-2"):
            assert [out.content[0] for _, out in decoders.read(items(tmp_path, name), obey)] == [int(name[-1])]


def test_decoders_that_read_nothing(tmp_path):
    with DecoderPool(DecoderLimits(2, 30.0)) as decoders:
        assert list(decoders.read([], obey)) == []


def test_the_part_of_the_clip_and_the_settings_reach_the_decoder(tmp_path):
    job = WorkItem(Clip(clip="a", path=tmp_path / "a.mp4", start=1.0, end=2.5), "")
    assert decode_all([job], with_settings, fps=4.0, most=8)["a"].content == (1.0, 2.5, 4.0, 8)


def test_no_more_than_a_few_clips_are_decoded_ahead(tmp_path):
    n_taken = 0

    def endless():
        nonlocal n_taken
        for number in range(1000):
            n_taken += 1
            yield items(tmp_path, f"ok-{number}")[0]

    with DecoderPool(DecoderLimits(1, 60.0)) as decoders:
        next(decoders.read(endless(), obey))
        assert n_taken == decode.MAX_AHEAD


def test_leaving_early_stops_the_processes(tmp_path):
    class Stop(BaseException):
        pass

    with pytest.raises(Stop), DecoderPool(DecoderLimits(2, 60.0)) as decoders:
        next(decoders.read(items(tmp_path, "ok-1", "hang-1", "hang-2", "hang-3"), obey))
        raise Stop
    assert not list(tmp_path.iterdir()), "a decoder was not stopped, but finished"


def test_audio_of_a_real_clip(demo):
    decoded = decode_audio(demo / "clips" / "spk01_001.mp4", 0.5, 1.5)
    assert decoded.content.shape == (16_000,)
    assert decoded.seconds == 1.0


def test_face_of_a_real_clip(demo):
    decoded = decode_faces(demo / "clips" / "spk01_001.mp4", None, None, fps=2.0, max_frames=3)
    assert decoded.content.shape == (3, 224, 224, 3)
    assert (decoded.frames_seen, decoded.face_share) == (3, 1.0)
    assert decoded.timings["decode"] > 0 < decoded.timings["faces"]


def test_the_sound_is_read_from_the_file_of_the_audio(tmp_path):
    clip = Clip(clip="a", path=tmp_path / "a.mp4", audio=tmp_path / "sounds" / "a.wav")
    ramp = np.linspace(-0.25, 0.25, 8_000, dtype=np.float32)
    soundfile.write(tmp_path / "tone.wav", ramp, 16_000, subtype="FLOAT")
    clip.audio.parent.mkdir()
    (tmp_path / "tone.wav").rename(clip.audio)
    with DecoderPool(DecoderLimits(1, 60.0)) as pool:
        ((_, sound),) = pool.read([WorkItem(clip, "")], decode_audio)
        ((_, picture),) = pool.read([WorkItem(clip, "")], read_name)
    np.testing.assert_array_equal(sound.content, ramp)
    assert picture.content == "a.mp4"


def test_a_clip_of_text_alone_lacks_audio_and_video(tmp_path):
    items = [WorkItem(Clip(clip="a", text="Well."), "")]
    with DecoderPool(DecoderLimits(1, 60.0)) as pool:
        ((_, sound),) = pool.read(items, decode_audio)
        ((_, picture),) = pool.read(items, decode_faces, fps=4, max_frames=8)
    assert (sound.reason, picture.reason) == ("no_audio", "no_video")
    assert "names no media file" in sound.message


def test_an_empty_transcript_is_an_absent_modality(tmp_path):
    clips = [
        Clip(clip="a", path=tmp_path, text=" wow "),
        Clip(clip="b", path=tmp_path, text="  "),
        Clip(clip="c", path=tmp_path),
    ]
    found = [out for _, out in decode_text((WorkItem(clip, "") for clip in clips), {"c": "unreadable"})]
    assert found[0].content == "wow"
    assert [error.reason for error in found[1:]] == ["no_text", "unreadable"]


def test_workers_are_those_asked_for_or_the_cores_up_to_eight(monkeypatch):
    assert worker_count(3) == 3
    for cores, workers in ((1, 1), (4, 4), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert worker_count() == workers


def test_decoders_of_audio_do_not_import_torch():
    """It would cost each process seconds."""
    code = "import sys, mertool.extraction.decoding, mertool.media; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_settings_of_one_clip_stand_beside_those_of_all(tmp_path):
    jobs = items(tmp_path, "a", "bb")
    with DecoderPool(DecoderLimits(1, 30.0)) as decoders:
        read = decoders.read(jobs, with_settings, lambda clip: {"most": len(clip.clip)}, fps=4.0)
        found = {item.clip.clip: out.content for item, out in read}
    assert found == {"a": (None, None, 4.0, 1), "bb": (None, None, 4.0, 2)}
