"""`extract_to_stores`: several stores of one encoder in one pass, each of which resumes by itself."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from mertool.errors import ClipError, MertoolError
from mertool.extraction import worker
from mertool.extraction.clip_encoder import ClipEncoder
from mertool.extraction.decoding import DecodedClip, DecoderPool
from mertool.extraction.driver import extract_to_stores
from mertool.extraction.job import ExtractionJob
from mertool.extraction.pooling import FeaturePooling
from mertool.extraction.targets import StoreTarget
from mertool.features import Recipe
from mertool.manifest import Clip, Manifest
from mertool.store import FeatureStore, StoreWriter


def decode_number(path, start, end, noise=None):
    """Stands in for `decode_audio`: logs the call; the file's name tells its content and what goes wrong."""
    with open(path.parent / "decoded.log", "a") as log:
        log.write(f"{path.stem}\n")
    if path.stem.startswith("silent"):
        raise ClipError("no_audio")
    return DecodedClip(float(path.stem.rpartition("-")[2]), seconds=1.0)


@dataclass
class FakeLoader:
    """Loads itself as an encoder: a layer l of the number x is (3 frames, 2 channels) of x + l."""

    truncated = 0

    bad: float | None = None
    encoded: list[float] = field(default_factory=list)

    def load(self, targets, device, max_batch_cost=None):
        layers = tuple(sorted({layer for target in targets for layer in target.recipe.layers}))
        poolings = tuple(FeaturePooling(target.recipe, layers) for target in targets)
        return ClipEncoder(encoder=self, layers=layers, poolings=poolings)

    def prepare(self, content):
        return content

    def cost(self, prepared):
        return 1.0

    def encode_prepared(self, prepared, layers):
        if self.bad in prepared:
            raise KeyError("a bug")
        self.encoded += prepared
        return [torch.stack([torch.full((3, 2), number + layer) for layer in layers]) for number in prepared]


class NeverLoaded:
    def load(self, targets, device, max_batch_cost=None):
        pytest.fail("the encoder was loaded")


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A function that makes a manifest of files of these names."""
    monkeypatch.setattr(worker, "decode_audio", decode_number)

    def make(*names):
        paths = [tmp_path / f"{name}.wav" for name in names]
        for path in paths:
            path.write_bytes(path.stem.encode())
        return Manifest(tuple(Clip(clip=path.stem, path=path) for path in paths), tmp_path)

    return make


def target(path, layers=(0,), pool="mean"):
    return StoreTarget(
        path=path,
        recipe=Recipe(modality="audio", encoder="fake", weights="w", layers=layers, pool=pool, storage_dtype="float32"),
    )


@pytest.fixture
def job(tmp_path):
    """A job of two stores: the pooled layers 0 and 1, and the frames of layer 1."""
    targets = (target(tmp_path / "pooled.h5", (0, 1)), target(tmp_path / "frames.h5", (1,), "none"))
    return ExtractionJob(targets=targets, encoder=FakeLoader())


def pooled_values(path):
    with FeatureStore(path) as store:
        return {clip: store.read([clip])[0, :, 0].tolist() for clip in store.ids}


def frame_values(path):
    with FeatureStore(path) as store:
        return {clip: store.frames(clip)[:, 0].tolist() for clip in store.ids}


def decoded(folder):
    log = folder / "decoded.log"
    return sorted(log.read_text().split()) if log.exists() else []


def silent(*_):
    """No progress is shown."""


def test_each_clip_is_decoded_and_encoded_once_for_all_stores(clips, job, tmp_path):
    steps = []
    summary = extract_to_stores(clips("a-1", "silent-2", "c-3"), job, lambda *step: steps.append(step))
    assert pooled_values(tmp_path / "pooled.h5") == {"a-1": [1, 2], "c-3": [3, 4]}
    assert frame_values(tmp_path / "frames.h5") == {"a-1": [2, 2, 2], "c-3": [4, 4, 4]}
    assert decoded(tmp_path) == ["a-1", "c-3", "silent-2"]
    assert sorted(job.encoder.encoded) == [1, 3]
    assert (summary.stats.extracted, summary.cached, summary.reasons) == (2, 0, ["no_audio"])
    assert steps[-1][:3] == (3, 3, 0)


def test_a_second_run_decodes_nothing_and_loads_nothing(clips, job, tmp_path):
    manifest = clips("a-1", "silent-2")
    extract_to_stores(manifest, job, silent)
    before = decoded(tmp_path)
    summary = extract_to_stores(manifest, replace(job, encoder=NeverLoaded()), silent)
    assert decoded(tmp_path) == before
    assert (summary.stats.done, summary.cached, summary.reasons) == (0, 1, ["no_audio"])


def test_a_complete_store_is_left_as_it_is(clips, job, tmp_path):
    """The second store is added later: the first is not written again."""
    manifest = clips("a-1", "b-2")
    extract_to_stores(manifest, replace(job, targets=job.targets[:1]), silent)
    before = (tmp_path / "pooled.h5").stat()
    summary = extract_to_stores(manifest, job, silent)
    assert (tmp_path / "pooled.h5").stat().st_mtime_ns == before.st_mtime_ns
    assert (summary.stats.extracted, summary.cached) == (2, 0)
    assert frame_values(tmp_path / "frames.h5") == {"a-1": [2, 2, 2], "b-2": [3, 3, 3]}


def test_only_clips_that_a_store_lacks_are_decoded(clips, job, tmp_path):
    manifest = clips("a-1", "b-2", "c-3")
    extract_to_stores(replace(manifest, clips=manifest.clips[:2]), job, silent)
    summary = extract_to_stores(manifest, job, silent)
    assert decoded(tmp_path) == ["a-1", "b-2", "c-3"]
    assert (summary.stats.extracted, summary.cached) == (1, 2)
    assert list(frame_values(tmp_path / "frames.h5")) == ["a-1", "b-2", "c-3"]


def test_values_equal_those_of_two_separate_jobs(clips, job, tmp_path):
    manifest = clips("a-1", "b-2", "silent-3")
    extract_to_stores(manifest, job, silent)
    for shared in job.targets:
        alone = replace(shared, path=tmp_path / f"alone-{shared.path.name}")
        extract_to_stores(manifest, replace(job, targets=(alone,)), silent)
    assert pooled_values(tmp_path / "alone-pooled.h5") == pooled_values(tmp_path / "pooled.h5")
    assert frame_values(tmp_path / "alone-frames.h5") == frame_values(tmp_path / "frames.h5")


def test_an_error_keeps_what_all_stores_had(clips, job, tmp_path):
    manifest = clips(*(f"c-{number}" for number in range(12)))
    with pytest.raises(KeyError, match="a bug"):
        extract_to_stores(manifest, replace(job, encoder=FakeLoader(bad=11.0)), silent)
    summary = extract_to_stores(manifest, job, silent)
    assert 0 < summary.cached < 12
    assert len(job.encoder.encoded) == 12 - summary.cached
    assert len(pooled_values(tmp_path / "pooled.h5")) == len(frame_values(tmp_path / "frames.h5")) == 12


def test_an_interrupt_keeps_what_all_stores_had(clips, job, tmp_path, monkeypatch):
    read = DecoderPool.read

    def interrupted(self, *arguments):
        for number, result in enumerate(read(self, *arguments)):
            if number == 6:
                raise KeyboardInterrupt
            yield result

    manifest = clips(*(f"c-{number}" for number in range(20)))
    monkeypatch.setattr(DecoderPool, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_to_stores(manifest, job, silent)
    monkeypatch.setattr(DecoderPool, "read", read)
    summary = extract_to_stores(manifest, job, silent)
    assert len(pooled_values(tmp_path / "pooled.h5")) == len(frame_values(tmp_path / "frames.h5")) == 20
    assert summary.stats.extracted + summary.cached == 20


def test_a_full_disk_ends_the_run(clips, job, monkeypatch):
    def add(self, features):
        raise MertoolError("the disk is full")

    monkeypatch.setattr(StoreWriter, "add", add)
    with pytest.raises(MertoolError, match="the disk is full"):
        extract_to_stores(clips(*(f"c-{number}" for number in range(40))), job, silent)


def test_a_store_of_another_recipe_is_refused_before_the_work(clips, job, tmp_path):
    manifest = clips("a-1")
    extract_to_stores(manifest, replace(job, targets=(target(tmp_path / "frames.h5", (0,), "none"),)), silent)
    before = decoded(tmp_path)
    with pytest.raises(MertoolError, match=r"frames\.h5 was made by another recipe"):
        extract_to_stores(manifest, job, silent)
    assert decoded(tmp_path) == before
    assert not (tmp_path / "pooled.h5").exists()
