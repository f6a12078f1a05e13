"""One pass over the clips for several stores: every clip is read once, and each store resumes by itself."""

import threading
import time

import pytest
import torch

from mertool.errors import ClipError, MertoolError
from mertool.extraction import shared as together
from mertool.extraction.batching import BatchBudget
from mertool.extraction.decoding import DecodedClip, DecoderLimits
from mertool.extraction.pipeline import EncodeSpec, mean_pool
from mertool.extraction.plan import WorkItem
from mertool.extraction.shared import Group, Listener, Reading, Target, fill_together
from mertool.features import Recipe
from mertool.manifest import Clip, Manifest
from mertool.store import FeatureStore

FACES = {"fps": 2.0, "most_frames": 8}


def hear(path, start, end, noise=None):
    """Stands in for `decode_audio`: says that it was there; the file's name tells what goes wrong."""
    return _obey(path, "sound")


def see(path, start, end, fps, max_frames, decoder="auto", blur_factor=1):
    """Stands in for `decode_faces`."""
    return _obey(path, "faces")


def _obey(path, kind):
    with open(path.parent / "read.log", "a") as log:
        log.write(f"{path.stem} {kind}\n")
    what = path.stem.partition("-")[0]
    if what == f"no{kind}":
        raise ClipError("no_audio" if kind == "sound" else "no_face")
    if what == f"odd{kind}":
        raise ValueError("odd bytes")
    if what == f"hang{kind}":
        time.sleep(60)
    return DecodedClip(float(path.stem.rpartition("-")[2]) + (100 if kind == "faces" else 0), seconds=1.0)


class FakeEncoder:
    """A layer l of the number x is (3 frames, 2 channels) of x + l."""

    def __init__(self, bad=None):
        self.bad, self.seen, self.busy = bad, [], 0

    def prepare(self, item):
        return item

    def cost(self, item):
        return 1.0

    def encode_prepared(self, items, keep):
        if self.bad in items:
            raise KeyError("a bug")
        self.seen += items
        return [torch.stack([torch.full((3, 2), item + layer) for layer in keep]) for item in items]


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A function that makes a manifest of files of these names; reading them is as their names say."""
    monkeypatch.setattr(together, "decode_audio", hear)
    monkeypatch.setattr(together, "decode_faces", see)

    def make(*names):
        paths = [tmp_path / f"{name}.mp4" for name in names]
        for path in paths:
            path.write_bytes(path.stem.encode())
        return Manifest(tuple(Clip(path.stem, path) for path in paths), tmp_path)

    return make


def group(folder, modality="audio", names=("one",), encoder=None):
    """Stores of one encoder; the first has layer 0, the second layers 0 and 1."""
    encoder = encoder or FakeEncoder()
    media = FACES if modality == "video" else {}
    recipes = [
        Recipe(modality, "fake", "w", tuple(range(count + 1)), "mean", storage_dtype="float32", media=media)
        for count in range(len(names))
    ]
    targets = tuple(
        Target(folder / f"{modality}-{name}.h5", recipe, {}) for name, recipe in zip(names, recipes, strict=True)
    )

    def finish(frames):
        return [mean_pool(frames[: len(recipe.layers)]) for recipe in recipes]

    keep = tuple(range(len(names)))
    return Group(targets, Reading.of(recipes[0]), lambda: EncodeSpec(encoder, keep, finish, BatchBudget(0.0)))


def fill(manifest, groups, listeners=(), timeout=30.0):
    steps = []
    device = torch.device("cpu")
    fill_together(
        manifest, groups, list(listeners), DecoderLimits(2, timeout), device, lambda *step: steps.append(step)
    )
    return steps


def values(path):
    with FeatureStore(path) as store:
        return {clip: store.read([clip])[0, :, 0].tolist() for clip in store.ids}


def failures(path):
    with FeatureStore(path) as store:
        return {failure.clip: failure.reason for failure in store.failures()}


def readings(folder):
    log = folder / "read.log"
    return sorted(log.read_text().splitlines()) if log.exists() else []


def test_each_clip_is_read_once_for_all_stores(clips, tmp_path):
    manifest = clips("a-1", "b-2", "c-3")
    groups = [group(tmp_path), group(tmp_path, "video", ("pooled", "layers"))]
    steps = fill(manifest, groups)
    assert values(tmp_path / "audio-one.h5") == {"a-1": [1], "b-2": [2], "c-3": [3]}
    assert values(tmp_path / "video-pooled.h5") == {"a-1": [101], "b-2": [102], "c-3": [103]}
    assert values(tmp_path / "video-layers.h5") == {"a-1": [101, 102], "b-2": [102, 103], "c-3": [103, 104]}
    assert readings(tmp_path) == sorted(
        f"{clip} {kind}" for clip in ("a-1", "b-2", "c-3") for kind in ("sound", "faces")
    )
    assert steps[-1][:3] == (3, 3, 0)


def test_what_one_reading_lacks_does_not_cost_the_other(clips, tmp_path):
    manifest = clips("nosound-1", "nofaces-2", "oddfaces-3", "fine-4")
    fill(manifest, [group(tmp_path), group(tmp_path, "video")])
    assert failures(tmp_path / "audio-one.h5") == {"nosound-1": "no_audio"}
    assert failures(tmp_path / "video-one.h5") == {"nofaces-2": "no_face", "oddfaces-3": "unreadable"}
    assert list(values(tmp_path / "audio-one.h5")) == ["nofaces-2", "oddfaces-3", "fine-4"]


def test_a_hang_in_the_picture_does_not_cost_the_sound(clips, tmp_path):
    manifest = clips("hangfaces-1", "fine-2")
    fill(manifest, [group(tmp_path), group(tmp_path, "video")], timeout=2.0)
    assert sorted(values(tmp_path / "audio-one.h5")) == ["fine-2", "hangfaces-1"]
    assert failures(tmp_path / "video-one.h5") == {"hangfaces-1": "timeout"}


def test_a_second_run_reads_nothing_and_loads_nothing(clips, tmp_path):
    manifest = clips("a-1", "nosound-2")
    fill(manifest, [group(tmp_path)])
    before = readings(tmp_path)
    again = group(tmp_path)
    fill(manifest, [Group(again.targets, again.reading, lambda: pytest.fail("an encoder was loaded"))])
    assert readings(tmp_path) == before


def test_a_store_that_has_a_clip_does_not_have_it_read_again(clips, tmp_path):
    manifest = clips("a-1", "b-2")
    fill(Manifest(manifest.clips[:1], tmp_path), [group(tmp_path)])
    fill(manifest, [group(tmp_path), group(tmp_path, "video")])
    assert readings(tmp_path) == ["a-1 faces", "a-1 sound", "b-2 faces", "b-2 sound"]


def test_what_was_done_before_an_error_is_kept(clips, tmp_path):
    manifest = clips(*(f"c-{number}" for number in range(12)))
    broken = group(tmp_path, "video", encoder=FakeEncoder(bad=111.0))
    with pytest.raises(KeyError, match="a bug"):
        fill(manifest, [group(tmp_path), broken])
    encoder = FakeEncoder()
    fill(manifest, [group(tmp_path), group(tmp_path, "video", encoder=encoder)])
    assert len(values(tmp_path / "video-one.h5")) == 12
    assert len(encoder.seen) < 12  # the others were there already


def test_one_computes_at_a_time(clips, tmp_path):
    class Alone(FakeEncoder):
        inside = threading.Lock()

        def encode_prepared(self, items, keep):
            assert self.inside.acquire(blocking=False), "two encoders compute at once"
            time.sleep(0.01)
            self.inside.release()
            return super().encode_prepared(items, keep)

    manifest = clips(*(f"c-{number}" for number in range(8)))
    fill(manifest, [group(tmp_path, encoder=Alone()), group(tmp_path, "video", encoder=Alone())])
    assert len(values(tmp_path / "video-one.h5")) == len(values(tmp_path / "audio-one.h5")) == 8


def test_a_listener_gets_its_clips_alone(clips, tmp_path):
    manifest = clips("a-1", "b-2", "c-3")
    heard = {}

    def open_listener(turn):
        def listen(outcomes, progress):
            for item, outcome in outcomes:
                heard[item.clip.clip] = outcome.content
                progress(len(heard), 2, 0)

        return listen

    items = [WorkItem(clip, clip.digest()) for clip in manifest.clips[1:]]
    fill(manifest, [group(tmp_path, "video")], [Listener(items, Reading("audio"), open_listener)])
    assert heard == {"b-2": 2.0, "c-3": 3.0}
    assert len(values(tmp_path / "video-one.h5")) == 3
    assert "a-1 sound" not in readings(tmp_path)


def test_a_full_disk_ends_all(clips, tmp_path, monkeypatch):
    from mertool.store import StoreWriter

    def full(self, features):
        raise MertoolError("the disk is full")

    monkeypatch.setattr(StoreWriter, "add", full)
    with pytest.raises(MertoolError, match="the disk is full"):
        fill(clips(*(f"c-{number}" for number in range(40))), [group(tmp_path), group(tmp_path, "video")])


def test_an_interrupt_keeps_what_was_done(clips, tmp_path, monkeypatch):
    from mertool.extraction.decoding import DecoderPool

    read = DecoderPool.read

    def interrupted(self, *given):
        for number, outcome in enumerate(read(self, *given)):
            if number == 6:
                time.sleep(1)  # what was given so far is encoded meanwhile
                raise KeyboardInterrupt
            yield outcome

    manifest = clips(*(f"c-{number}" for number in range(20)))
    monkeypatch.setattr(DecoderPool, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(manifest, [group(tmp_path), group(tmp_path, "video")])
    monkeypatch.setattr(DecoderPool, "read", read)
    encoders = [FakeEncoder(), FakeEncoder()]
    fill(manifest, [group(tmp_path, encoder=encoders[0]), group(tmp_path, "video", encoder=encoders[1])])
    assert [len(encoder.seen) for encoder in encoders] == [14, 14]
    assert len(values(tmp_path / "audio-one.h5")) == 20
