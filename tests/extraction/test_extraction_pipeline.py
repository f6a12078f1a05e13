"""From decoded clips to rows of a store, with encoders that fail."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from mertool.encoders.aligner import CrossFittedAligner
from mertool.errors import ClipError, MertoolError
from mertool.extraction.batching import BatchBudget
from mertool.extraction.clip_encoder import ClipEncoder
from mertool.extraction.decoding import DecodedClip
from mertool.extraction.multi_adapter import MultiAdapterEncoder
from mertool.extraction.pipeline import encode_and_write
from mertool.extraction.plan import WorkItem
from mertool.extraction.pooling import FeaturePooling
from mertool.features import Recipe
from mertool.manifest import Clip
from mertool.store import FeatureStore, StoreWriter, as_stored


class FakeEncoder:
    """Takes numbers; a layer l of clip x is (3 frames, 2 channels) of x + l. Larger batches do not fit."""

    truncated = 0

    def __init__(self, fits: int = 100, bad: float | None = None, huge: float | None = None):
        self.fits, self.bad, self.huge = fits, bad, huge
        self.sizes: list[int] = []

    def prepare(self, item):
        if item == self.bad:
            raise ClipError("too_short", "a bad one")
        return item

    def cost(self, item):
        return 1.0

    def encode_prepared(self, items, keep):
        self.sizes.append(len(items))
        if len(items) > self.fits or self.huge in items:
            raise torch.OutOfMemoryError("does not fit")
        return [torch.stack([torch.full((3, 2), float(item + layer)) for layer in keep]) for item in items]


def make_recipe(layers=(0, 1), pool="mean"):
    return Recipe(modality="audio", encoder="fake", weights="w", layers=layers, pool=pool, storage_dtype="float32")


def make_clip_encoder(encoder, *recipes, max_cost=0.0):
    """The encoder for stores of these recipes."""
    layers = tuple(sorted({layer for recipe in recipes for layer in recipe.layers}))
    poolings = tuple(FeaturePooling(recipe, layers) for recipe in recipes)
    return ClipEncoder(encoder=encoder, layers=layers, poolings=poolings, budget=BatchBudget(max_cost))


def extract(tmp_path, encoder, contents, *, pool="mean", layers=(0, 1), max_cost=8.0):
    recipe = make_recipe(layers, pool)
    jobs = [WorkItem(Clip(clip=f"c{n}", path=tmp_path), f"d{n}") for n in range(len(contents))]
    outcomes = [
        (job, content if isinstance(content, ClipError) else DecodedClip(content, seconds=2.0))
        for job, content in zip(jobs, contents, strict=True)
    ]
    steps = []
    with StoreWriter(tmp_path / "s.h5", recipe, {}) as writer:
        stats = encode_and_write(
            outcomes,
            total=len(jobs),
            encoder=make_clip_encoder(encoder, recipe, max_cost=max_cost),
            writers=[writer],
            on_progress=lambda *step: steps.append(step),
        )
        writer.finish(job.clip.clip for job in jobs)
    with FeatureStore(tmp_path / "s.h5") as store:
        failures = {failure.clip: failure for failure in store.failures()}
        values = {clip: store.read([clip])[0] if store.pooled else store.frames(clip) for clip in store.ids}
    return stats, values, failures, steps


def test_every_clip_gets_its_own_values(tmp_path):
    _, values, failures, _ = extract(tmp_path, FakeEncoder(), [3, 1, 2, 9, 5])
    assert not failures
    assert {clip: value[:, 0].tolist() for clip, value in values.items()} == {
        "c0": [3, 4],
        "c1": [1, 2],
        "c2": [2, 3],
        "c3": [9, 10],
        "c4": [5, 6],
    }


def test_what_does_not_fit_is_tried_in_halves(tmp_path):
    encoder = FakeEncoder(fits=2)
    report, values, failures, _ = extract(tmp_path, encoder, list(range(8)))
    assert [values[f"c{n}"][0, 0] for n in range(8)] == list(range(8))
    assert (report.extracted, failures) == (8, {})
    assert encoder.sizes == [8, 4, 2, 2, 4, 2, 2]


def test_what_did_not_fit_is_not_tried_again_in_that_size(tmp_path):
    encoder = FakeEncoder(fits=2)
    extract(tmp_path, encoder, list(range(200)))
    assert encoder.sizes.count(8) <= 4  # of batches that stood ready
    assert encoder.sizes[-3:] == [2, 2, 2]


def test_a_clip_that_does_not_fit_alone_is_recorded(tmp_path):
    report, values, failures, _ = extract(tmp_path, FakeEncoder(huge=2), list(range(5)))
    assert sorted(values) == ["c0", "c1", "c3", "c4"]
    assert (failures["c2"].reason, failures["c2"].stage) == ("out_of_memory", "encode")
    assert report.failed == 1


def test_a_bad_clip_does_not_harm_its_batch(tmp_path):
    _, values, failures, _ = extract(tmp_path, FakeEncoder(bad=3), list(range(6)))
    assert sorted(values) == ["c0", "c1", "c2", "c4", "c5"]
    assert (failures["c3"].reason, failures["c3"].message) == ("too_short", "a bad one")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_recorded(value, tmp_path):
    _, values, failures, _ = extract(tmp_path, FakeEncoder(), [1.0, value, 2.0])
    assert sorted(values) == ["c0", "c2"]
    assert (failures["c1"].reason, failures["c1"].stage) == ("not_finite", "encode")


@pytest.mark.parametrize("value", [3.14159, 3.14159e5])
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_an_aligner_gets_frames_as_a_frame_store_holds_them(storage, value):
    """Rounded to float16, unless they do not fit; so aligned features are the same from both."""
    seen = []

    class Recorder:
        def encode_clip(self, frames):
            seen.append(frames)
            return frames.mean(1)

    recipe = replace(make_recipe((0,)), aligner="a", storage_dtype=storage)
    frames = torch.tensor([[[value, 0.1], [1.0, 2.0]]])
    FeaturePooling(recipe, (0,), CrossFittedAligner(final=Recorder()))(frames, "c0")
    np.testing.assert_array_equal(seen[0].numpy(), as_stored(frames.numpy(), np.dtype(storage)))
    assert (seen[0][0, 0, 1] == np.float32(0.1)) == (storage == "float32" or value > 65_504)


def test_failures_of_decoding_are_recorded(tmp_path):
    contents = [1, ClipError("no_audio"), ClipError("timeout", "slow"), 2]
    report, values, failures, _ = extract(tmp_path, FakeEncoder(), contents)
    assert sorted(values) == ["c0", "c3"]
    assert {clip: (f.reason, f.stage, f.digest) for clip, f in failures.items()} == {
        "c1": ("no_audio", "decode", "d1"),
        "c2": ("timeout", "decode", "d2"),
    }
    assert (report.extracted, report.failed) == (2, 1)  # a clip without sound is no failure


def test_progress_counts_every_clip_once(tmp_path):
    _, _, _, steps = extract(tmp_path, FakeEncoder(), [1, ClipError("timeout"), 2, float("nan")])
    assert [done for done, *_ in steps] == [1, 2, 3, 4]
    assert {total for _, total, *_ in steps} == {4}
    assert steps[-1] == (4, 4, 2, 4.0)


def test_each_clip_is_encoded_with_its_adapter(tmp_path):
    class AdaptedModel(FakeEncoder):
        """The active adapter adds its offset, and what it adds to all clips is its shift."""

        offset = 0

        def set_adapter(self, name):
            self.offset = {"fold1": 100, "fold2": 200, "final": 300}[name]

        def encode_prepared(self, items, keep):
            return super().encode_prepared([item + self.offset for item in items], keep)

    encoder = AdaptedModel()
    encoder.model = encoder
    shifts = {name: torch.full((2, 2), shift) for name, shift in {"fold1": 1.0, "fold2": 2.0, "final": 3.0}.items()}
    adapted = MultiAdapterEncoder(encoder, shifts, {"c0": "fold1", "c1": "fold2", "c2": "fold1"})
    _, values, _, _ = extract(tmp_path, adapted, [1, 2, 3, 4])
    assert [values[f"c{n}"][0, 0] for n in range(4)] == [100, 200, 102, 301]


def test_one_pass_writes_several_stores(tmp_path):
    """Stores of one encoder differ in layers and pooling; each clip is encoded once."""
    recipes = [make_recipe((0, 2)), make_recipe((1,), "none")]
    items = [WorkItem(Clip(clip=f"c{n}", path=tmp_path), f"d{n}") for n in range(3)]
    encoder = FakeEncoder()
    with (
        StoreWriter(tmp_path / "a.h5", recipes[0], {}) as first,
        StoreWriter(tmp_path / "b.h5", recipes[1], {}) as second,
    ):
        encode_and_write(
            [(item, DecodedClip(number, seconds=1.0)) for number, item in enumerate(items)],
            total=3,
            encoder=make_clip_encoder(encoder, *recipes),
            writers=[first, second],
            on_progress=lambda *_: None,
        )
        for writer in (first, second):
            writer.finish(item.clip.clip for item in items)
    assert sum(encoder.sizes) == 3
    with FeatureStore(tmp_path / "a.h5") as pooled, FeatureStore(tmp_path / "b.h5") as frames:
        assert pooled.read(["c1"])[0, :, 0].tolist() == [1, 3]
        assert frames.frames("c1").tolist() == [[2, 2]] * 3


def test_frames_of_several_layers_and_of_one(tmp_path):
    _, several, _, _ = extract(tmp_path, FakeEncoder(), [5, 7], pool="none")
    assert several["c1"].shape == (2, 3, 2)
    (tmp_path / "s.h5").unlink()
    _, one, _, _ = extract(tmp_path, FakeEncoder(), [5, 7], pool="none", layers=(1,))
    assert one["c1"].tolist() == [[8, 8]] * 3


def test_pooling_is_the_mean_over_time():
    frames = torch.arange(12.0).view(2, 3, 2)
    np.testing.assert_allclose(FeaturePooling(make_recipe(), (0, 1))(frames, "c0"), [[2, 3], [8, 9]])


def test_the_report_adds_up_media(tmp_path):
    report, _, _, _ = extract(tmp_path, FakeEncoder(), [1, 2, ClipError("timeout")])
    assert report.media_seconds == 4.0


def test_the_report_says_where_the_time_went(tmp_path):
    class Slow(FakeEncoder):
        def encode_prepared(self, items, keep):
            time.sleep(0.05)
            return super().encode_prepared(items, keep)

    report, *_ = extract(tmp_path, Slow(), [1, 2, 3], max_cost=0)
    assert 0.15 <= report.encode <= report.wall
    assert report.idle == pytest.approx(report.wall - report.encode)
    assert report.write > 0


def test_writing_does_not_hold_the_encoder_up(tmp_path, monkeypatch):
    """While the first result is being written, others are encoded."""
    encoder, seen = FakeEncoder(), []
    add = StoreWriter.add

    def slow_add(self, features):
        time.sleep(0.05)
        seen.append(len(encoder.sizes))
        add(self, features)

    monkeypatch.setattr(StoreWriter, "add", slow_add)
    _, values, _, _ = extract(tmp_path, encoder, list(range(6)), max_cost=0)
    assert len(values) == 6
    assert seen[0] > 1


def test_an_error_of_the_writer_ends_the_run(tmp_path, monkeypatch):
    def full(self, features):
        raise MertoolError("the disk is full")

    monkeypatch.setattr(StoreWriter, "add", full)
    with pytest.raises(MertoolError, match="the disk is full"):
        extract(tmp_path, FakeEncoder(), list(range(100)), max_cost=0)


def test_an_unforeseen_error_of_the_encoder_ends_the_run_and_keeps_what_was_done(tmp_path):
    class Broken(FakeEncoder):
        def encode_prepared(self, items, keep):
            if 3 in items:
                raise KeyError("a bug")
            return super().encode_prepared(items, keep)

    with pytest.raises(KeyError, match="a bug"):
        extract(tmp_path, Broken(), list(range(6)), max_cost=0)
    with StoreWriter(tmp_path / "s.h5", make_recipe(), {}) as writer:
        assert sorted(writer.done) == ["c0", "c1", "c2"]


def test_an_error_while_decoding_ends_the_run(tmp_path):
    def outcomes():
        yield WorkItem(Clip(clip="c0", path=tmp_path), "d0"), DecodedClip(1)
        raise KeyError("a bug")

    recipe = make_recipe()
    encoder = make_clip_encoder(FakeEncoder(), recipe)
    with StoreWriter(tmp_path / "s.h5", recipe, {}) as writer, pytest.raises(KeyError, match="a bug"):
        encode_and_write(outcomes(), total=2, encoder=encoder, writers=[writer], on_progress=lambda *_: None)
