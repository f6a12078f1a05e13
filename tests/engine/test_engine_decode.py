"""Decoder processes that hang, die or fail cost their own clip alone."""

import os
import time

import numpy as np
import pytest

from mertool.engine.decode import Decoded, decode_audio, decode_faces, decode_in_processes, decode_text
from mertool.engine.plan import WorkItem
from mertool.errors import ClipError
from mertool.manifest import Clip


def obey(path, start, end):
    """A decoder that does what the file's name says."""
    what = path.stem.split("-")[0]
    if what == "hang":
        time.sleep(60)
    if what == "die":
        os._exit(7)
    if what == "refuse":
        raise ClipError("no_audio", "none here")
    if what == "value":
        raise ValueError("odd bytes")
    if what == "memory":
        raise MemoryError("huge frame")
    if what == "key":
        raise KeyError("codec")
    return Decoded(np.full(4, float(path.stem.split("-")[1])))


def slow_then(path, start, end):
    time.sleep(0.3 if path.stem == "0" else 0.0)
    return Decoded(int(path.stem))


def with_settings(path, start, end, fps, most):
    return Decoded((start, end, fps, most))


def items(tmp_path, *names):
    return [WorkItem(Clip(name, tmp_path / f"{name}.mp4"), "") for name in names]


def outcomes(jobs, read=obey, workers=2, timeout=30.0, **settings):
    return {item.clip.clip: found for item, found in decode_in_processes(jobs, read, workers, timeout, **settings)}


@pytest.fixture(scope="module")
def trouble(tmp_path_factory):
    """Bad clips among good ones, with one time limit for all."""
    names = ["ok-1", "hang-1", "ok-2", "die-1", "ok-3", "refuse-1", "value-1", "memory-1", "ok-4", "die-2", "ok-5"]
    began = time.monotonic()
    found = outcomes(items(tmp_path_factory.mktemp("clips"), *names), timeout=4.0)
    return found, time.monotonic() - began


def test_good_clips_survive_bad_ones(trouble):
    found, _ = trouble
    assert [found[f"ok-{n}"].content[0] for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert len(found) == 11


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("hang-1", "timeout", "longer than 4 s"),
        ("die-1", "crashed", "exit code 7"),
        ("die-2", "crashed", "exit code 7"),
        ("refuse-1", "no_audio", "none here"),
        ("value-1", "unreadable", "ValueError: odd bytes"),
        ("memory-1", "unreadable", "MemoryError"),
    ],
)
def test_each_bad_clip_has_its_reason(name, reason, message, trouble):
    error = trouble[0][name]
    assert isinstance(error, ClipError)
    assert error.reason == reason
    assert message in error.message


def test_a_hanging_decoder_is_killed_at_the_limit(trouble):
    assert trouble[1] < 30


def test_an_unforeseen_error_of_a_decoder_is_not_swallowed(tmp_path):
    """A KeyError in our own code is a bug, and keeps its traceback."""
    with pytest.raises(KeyError):
        outcomes(items(tmp_path, "key-1"))


def test_clips_come_back_in_order(tmp_path):
    jobs = items(tmp_path, *map(str, range(12)))
    found = [(item.clip.clip, out.content) for item, out in decode_in_processes(jobs, slow_then, 2, 30.0)]
    assert found == [(str(n), n) for n in range(12)]


def test_the_part_of_the_clip_and_the_settings_reach_the_decoder(tmp_path):
    job = WorkItem(Clip("a", tmp_path / "a.mp4", start=1.0, end=2.5), "")
    assert outcomes([job], with_settings, fps=4.0, most=8)["a"].content == (1.0, 2.5, 4.0, 8)


def test_no_more_than_a_few_clips_are_decoded_ahead(tmp_path):
    taken = 0

    def endless():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield items(tmp_path, str(number))[0]

    stream = decode_in_processes(endless(), slow_then, 1, 30.0)
    next(stream)
    stream.close()
    assert taken < 50


def test_leaving_early_stops_the_processes(tmp_path):
    stream = decode_in_processes(items(tmp_path, "ok-1", "hang-1", "hang-2", "hang-3"), obey, 2, 60.0)
    next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 15


def test_sound_of_a_real_clip(demo):
    decoded = decode_audio(demo / "clips" / "spk01_001.mp4", 0.5, 1.5)
    assert decoded.content.shape == (16_000,)
    assert decoded.seconds == 1.0


def test_face_of_a_real_clip(demo):
    decoded = decode_faces(demo / "clips" / "spk01_001.mp4", None, None, 2.0, 3)
    assert decoded.content.shape == (3, 224, 224, 3)
    assert (decoded.frames_seen, decoded.face_share) == (3, 1.0)


def test_an_empty_transcript_is_an_absent_modality(tmp_path):
    clips = [Clip("a", tmp_path, text=" wow "), Clip("b", tmp_path, text="  "), Clip("c", tmp_path)]
    found = [out for _, out in decode_text(WorkItem(clip, "") for clip in clips)]
    assert found[0].content == "wow"
    assert [error.reason for error in found[1:]] == ["no_text", "no_text"]
