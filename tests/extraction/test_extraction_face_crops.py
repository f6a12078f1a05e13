"""Face crops are detected once: stored beside the output, read by the next encoder, completed if clips are missing.

Detection is replaced by a function that draws crops from the bytes of a file and logs its calls; one test detects
real faces.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest

from mertool.errors import ClipError, MertoolError
from mertool.extraction.decoding import DecodedClip
from mertool.store import FeatureStore

NAMES = ("a", "b", "c", "d")
FACELESS = "c"


def draw_crops(path, start, end, fps, max_frames, decoder="auto"):
    """Stand in for `decode_faces` in the worker processes."""
    if not path.exists():
        raise ClipError("missing_file")
    content = path.read_bytes()
    with open(path.parent / "detected.log", "a") as log:
        log.write(f"{path.stem}\n")
    if content.startswith(b"nobody"):
        raise ClipError("no_face", "nobody in 4 frames")
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:4]))
    crops = draw.integers(0, 256, (max(1, int(2 * fps)), 64, 64, 3), np.uint8)
    return DecodedClip(
        crops, seconds=2.0, frames_seen=2 * len(crops), face_share=0.5, timings={"decode": 0.25, "faces": 0.5}
    )


@pytest.fixture
def media(tmp_path, write_manifest, monkeypatch):
    """A manifest of four clips; the third has no face."""
    monkeypatch.setattr("mertool.extraction.worker.decode_faces", draw_crops)
    for name in NAMES:
        (tmp_path / f"{name}.mp4").write_bytes(b"nobody" if name == FACELESS else f"picture {name}".encode())
    return write_manifest(tmp_path / "clips.csv", [{"clip": name, "path": f"{name}.mp4"} for name in NAMES])


@pytest.fixture
def detected(tmp_path):
    """A function that returns the clips whose faces were detected since the last call, sorted."""

    def since() -> list[str]:
        log = tmp_path / "detected.log"
        names = sorted(log.read_text().split()) if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    return since


@pytest.fixture
def video(invoke, media, tiny_encoders, tmp_path):
    """A function (*options) that extracts video; the command's result."""

    def run(*options, source=media, encoder="vit", store="video.h5"):
        arguments = ["--encoder", tiny_encoders[encoder], "--fps", 1, "--storage", "float32", "--workers", 1, "--json"]
        return invoke("extract", "video", source, "-o", tmp_path / store, *arguments, *options)

    return run


@pytest.fixture
def done(video):
    """Like `video`, for runs that must succeed; their JSON object."""

    def run(*options, **arguments):
        result = video(*options, **arguments)
        assert result.exit_code == 0, (result.exception, result.stderr)
        return json.loads(result.stdout)

    return run


def values(path):
    with FeatureStore(path) as store:
        pairs = zip(store.ids, store.read() if store.pooled else map(store.frames, store.ids), strict=True)
        return {clip: np.asarray(value) for clip, value in pairs}


def failures(path):
    with FeatureStore(path) as store:
        return [(failure.clip, failure.reason, failure.message) for failure in store.failures()]


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[clip], other[clip]) for clip in one)


# ---------------------------------------------------------------- beside the output


def test_crops_are_kept_beside_the_output(done, detected, media, invoke, tmp_path):
    result = done()
    assert (result["features"], result["missing"]) == (3, {"no_face": 1})
    assert result["seconds"]["faces"] == 1.5
    assert detected() == list(NAMES)
    assert not (tmp_path / "faces.h5.parts").exists()
    result = invoke("extract", "faces", media, "-o", tmp_path / "faces.h5", "--fps", 1, "--json")
    assert json.loads(result.stdout)["cached"] == 3, "they are not those of `extract faces`"
    assert detected() == []


def test_a_second_encoder_detects_no_face_again(done, detected, monkeypatch):
    done()
    detected()
    monkeypatch.setattr("mertool.extraction.worker.decode_faces", lambda *_: pytest.fail("a face was detected"))
    result = done(encoder="dinov2", store="dino.h5")
    assert (result["extracted"], result["missing"], result["failed"]) == (3, {"no_face": 1}, {})
    assert (result["seconds"]["faces"], result["seconds"]["decode"]) == (0, 0)
    assert result["media_seconds"] == 6.0
    assert detected() == []


def test_a_failure_comes_from_the_crops_with_its_words(done, tmp_path):
    done()
    done(encoder="dinov2", store="dino.h5")
    assert failures(tmp_path / "dino.h5") == [(FACELESS, "no_face", "nobody in 4 frames")]


def test_values_and_facts_do_not_depend_on_where_crops_come_from(done, media, call, tmp_path):
    call("extract", "faces", media, "-o", tmp_path / "apart" / "own.h5", "--fps", 1, "-q")
    for store, options in (
        ("detected.h5", ["--no-keep-faces"]),
        ("kept.h5", []),
        ("read.h5", []),
        ("given.h5", ["--faces", tmp_path / "apart" / "own.h5"]),
    ):
        done(*options, store=store)
    expected = values(tmp_path / "detected.h5")
    assert list(expected) == ["a", "b", "d"]
    for name in ("kept", "read", "given"):
        assert same(values(tmp_path / f"{name}.h5"), expected), name
        with FeatureStore(tmp_path / f"{name}.h5") as store:
            facts = {key: column.tolist() for key, column in store.media_stats().items()}
        expected_facts = {"seconds": [2.0] * 3, "frames_seen": [4] * 3, "face_share": [0.5] * 3}
        assert {key: facts[key] for key in expected_facts} == expected_facts


@pytest.mark.slow
def test_values_of_real_faces_do_not_depend_on_where_they_come_from(
    invoke, demo_rows, write_manifest, tiny_encoders, tmp_path
):
    manifest = write_manifest(tmp_path / "m.csv", [demo_rows["spk01_001"]])
    arguments = ["--encoder", tiny_encoders["clip"], "--fps", 1, "--storage", "float32", "--workers", 1, "--json"]
    for name in ("detected", "read"):
        result = invoke("extract", "video", manifest, "-o", tmp_path / f"{name}.h5", *arguments)
        assert (json.loads(result.stdout)["seconds"]["faces"] > 0) == (name == "detected")
    assert same(values(tmp_path / "detected.h5"), values(tmp_path / "read.h5"))


def test_crops_need_not_be_kept(done, detected, tmp_path):
    done("--no-keep-faces")
    assert detected() == list(NAMES)
    assert not list(tmp_path.glob("faces*"))


def test_another_fps_has_crops_of_its_own(done, detected, tmp_path):
    done()
    before = (tmp_path / "faces.h5").read_bytes()
    detected()
    done("--fps", 2, store="dense.h5")
    assert detected() == list(NAMES)
    (other,) = set(tmp_path.glob("faces*.h5")) - {tmp_path / "faces.h5"}
    with FeatureStore(other) as store:
        assert other.name == f"faces-{store.fingerprint[:8]}.h5"
        assert store.recipe.media["fps"] == 2
    assert (tmp_path / "faces.h5").read_bytes() == before
    done("--fps", 2, store="denser.h5", encoder="dinov2")
    assert detected() == []


def test_the_output_may_be_named_as_the_crops_are(done, detected, tmp_path):
    assert done(store="faces.h5")["features"] == 3
    assert len(list(tmp_path.glob("faces-*.h5"))) == 1
    assert done(store="other.h5")["features"] == 3
    assert detected() == list(NAMES)


def test_only_a_changed_file_is_read_again(done, detected, tmp_path):
    done()
    detected()
    (tmp_path / "b.mp4").write_bytes(b"another picture")
    done()
    assert detected() == ["b"]
    done(store="again.h5")
    assert detected() == []
    assert same(values(tmp_path / "video.h5"), values(tmp_path / "again.h5"))


def test_a_file_that_came_back_is_read(done, detected, tmp_path):
    (tmp_path / "b.mp4").rename(tmp_path / "away")
    assert done("--max-failed", 1)["failed"] == {"missing_file": 1}
    (tmp_path / "away").rename(tmp_path / "b.mp4")
    detected()
    assert done(store="again.h5")["failed"] == {}
    assert detected() == ["b"]


# ---------------------------------------------------------------- given


def test_a_given_store_that_lacks_clips_is_completed(done, detected, media, write_manifest, call, tmp_path):
    half = write_manifest(tmp_path / "half.csv", [{"clip": name, "path": f"{name}.mp4"} for name in "ac"])
    call("extract", "faces", half, "-o", tmp_path / "own.h5", "--fps", 1, "-q")
    detected()
    done("--faces", tmp_path / "own.h5")
    assert detected() == ["b", "d"]
    assert not list(tmp_path.glob("faces*"))
    with FeatureStore(tmp_path / "own.h5") as store:
        assert (store.ids, store.validate()) == (["a", "b", "d"], [])
    done("--no-keep-faces", store="direct.h5")
    assert same(values(tmp_path / "video.h5"), values(tmp_path / "direct.h5"))


def test_a_given_store_that_has_all_is_not_written(done, media, call, tmp_path):
    """So that several runs may share it, also on a read-only disk."""
    own = tmp_path / "own"
    call("extract", "faces", media, "-o", own / "f.h5", "--fps", 1, "-q")
    before = (own / "f.h5").stat()
    done("--faces", own / "f.h5")
    assert (own / "f.h5").stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in own.iterdir()] == ["f.h5"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "none.h5 does not exist"),
        ("fps", "own.h5 was made with other settings (media: "),
        ("audio", "made.h5 holds audio: --faces takes a store of `extract faces`"),
        ("output", "it is an input of this command"),
    ],
)
def test_a_store_of_crops_that_does_not_fit(case, words, video, media, call, make_store, tmp_path):
    call("extract", "faces", media, "-o", tmp_path / "own.h5", "--fps", 1, "-q")
    make_store(tmp_path / "made.h5", "audio", {"a": np.zeros((2, 4), np.float32)})
    options = {
        "missing": ["--faces", tmp_path / "none.h5"],
        "fps": ["--faces", tmp_path / "own.h5", "--fps", 2],
        "audio": ["--faces", tmp_path / "made.h5"],
        "output": ["--faces", tmp_path / "own.h5"],
    }[case]
    result = video(*options, store="own.h5" if case == "output" else "video.h5")
    assert isinstance(result.exception, MertoolError)
    assert words in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    assert not (tmp_path / "video.h5").exists()


# ---------------------------------------------------------------- interrupted


def test_crops_of_an_interrupted_run_are_kept(video, done, detected, tmp_path, monkeypatch):
    from mertool.encoders.families.vision_transformer import ImageEncoder

    real, calls = ImageEncoder.encode_prepared, []

    def stop_at_second(self, clips, keep):
        calls.append(len(clips))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, clips, keep)

    with monkeypatch.context() as patch:
        patch.setattr(ImageEncoder, "encode_prepared", stop_at_second)
        assert video().exit_code != 0
    assert list((tmp_path / "faces.h5.parts").glob("part-*.h5"))
    assert not (tmp_path / "faces.h5").exists()
    first = detected()
    assert len(first) >= 2
    assert done()["features"] == 3
    again = detected()
    assert len(again) < len(NAMES)
    assert set(first) | set(again) == set(NAMES)
    assert not (tmp_path / "faces.h5.parts").exists()
    with FeatureStore(tmp_path / "faces.h5") as store:
        assert (store.ids, store.validate()) == (["a", "b", "d"], [])


def test_parts_of_a_killed_run_are_merged_and_read(done, detected, media, write_manifest, call, tmp_path):
    half = write_manifest(tmp_path / "half.csv", [{"clip": name, "path": f"{name}.mp4"} for name in "ac"])
    call("extract", "faces", half, "-o", tmp_path / "faces.h5", "--fps", 1, "-q")
    parts = tmp_path / "faces.h5.parts"
    parts.mkdir()
    (tmp_path / "faces.h5").rename(parts / "part-00000000000000000001-aaaaaaaa.h5")
    detected()
    done()
    assert detected() == ["b", "d"]
    assert not parts.exists()
    with FeatureStore(tmp_path / "faces.h5") as store:
        assert store.ids == ["a", "b", "d"]


def test_parts_are_merged_though_no_crop_is_missing(done, detected, media, call, tmp_path):
    call("extract", "faces", media, "-o", tmp_path / "faces.h5", "--fps", 1, "-q")
    parts = tmp_path / "faces.h5.parts"
    parts.mkdir()
    shutil.copy(tmp_path / "faces.h5", parts / "part-00000000000000000001-aaaaaaaa.h5")
    detected()
    done()
    assert detected() == []
    assert not parts.exists()


# ---------------------------------------------------------------- shards


def test_each_shard_has_crops_of_its_own(done, detected, tmp_path):
    done()
    expected = values(tmp_path / "video.h5")
    (tmp_path / "faces.h5").unlink()
    detected()
    done("--shard", "1/2", store="v.h5")
    assert detected() == ["a", "b"]
    done("--shard", "2/2", store="v.h5")
    assert detected() == ["c", "d"]
    assert sorted(path.name for path in tmp_path.glob("faces*")) == ["faces.1-of-2.h5", "faces.2-of-2.h5"]
    both = values(tmp_path / "v.1-of-2.h5") | values(tmp_path / "v.2-of-2.h5")
    assert same(both, expected)
    done("--shard", "2/2", store="w.h5", encoder="dinov2")
    assert detected() == []


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_crops_of_a_shard_are_never_those_of_another_fps(order, done, tmp_path):
    for fps in order:
        done("--shard", "1/2", "--fps", fps, "--pool", "none", store=f"fps{fps}.h5")
    for fps in order:
        found = values(tmp_path / f"fps{fps}.1-of-2.h5")
        assert {clip: len(frames) for clip, frames in found.items()} == {"a": 2 * fps, "b": 2 * fps}


def test_crops_of_shards_can_be_merged(done, detected, call, tmp_path):
    for number in (1, 2):
        done("--shard", f"{number}/2")
    parts = [tmp_path / f"faces.{number}-of-2.h5" for number in (1, 2)]
    call("store", "merge", *parts, "-o", tmp_path / "faces.h5", "-q")
    detected()
    assert done(store="whole.h5")["missing"] == {"no_face": 1}
    assert detected() == []


def test_shards_may_share_a_given_store(done, detected, media, call, tmp_path):
    call("extract", "faces", media, "-o", tmp_path / "own.h5", "--fps", 1, "-q")
    detected()
    for number in (1, 2):
        done("--shard", f"{number}/2", "--faces", tmp_path / "own.h5")
    assert detected() == []
    assert not list(tmp_path.glob("faces*"))
