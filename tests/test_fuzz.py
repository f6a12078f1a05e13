"""A sample of `make fuzz`: every kind of damage once, through the same functions."""

import random
import shutil
from pathlib import Path

import fuzz
import pytest

from mertool.store import FeatureStore


@pytest.mark.slow
def test_every_kind_of_damage_once(tmp_path, monkeypatch):
    monkeypatch.delitem(fuzz.KINDS, "sparse")  # takes decoders to their timeout, which is a matter of half a minute
    damaged, findings = fuzz.fuzz(tmp_path, count=len(fuzz.KINDS) + 10, seed=0, originals=5, limit=300)
    assert findings.faults == []
    assert set(damaged.kinds.values()) == set(fuzz.KINDS)
    for modality in fuzz.MODALITIES:
        with FeatureStore(tmp_path / f"{modality}.h5") as store:
            assert len(store) >= 5
            assert len(store) + len(store.failures()) == len(damaged.kinds) + len(damaged.originals)
    report = "\n".join(fuzz.table(damaged, findings))
    assert "(untouched)" in report
    assert "LOST" not in report


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    return fuzz.make_sources(tmp_path_factory.mktemp("fuzz") / "sources")


def test_the_same_seed_makes_the_same_files(sources, tmp_path):
    def files(name: str, count: int, seed: int) -> dict[str, bytes]:
        made = fuzz.make_folder(tmp_path / name, sources, count=count, seed=seed, originals=2)
        by_bytes = [clip for clip, kind in made.kinds.items() if fuzz.KINDS[kind].sources]
        return {clip: made.paths[clip].read_bytes() for clip in by_bytes}

    first, again, other = files("a", 24, 3), files("b", 24, 3), files("c", 24, 4)
    assert len(first) > 5
    assert first == again
    assert all(first[clip] != other[clip] for clip in set(first) & set(other) if "no_streams" not in clip)


def test_a_check_that_fails_names_the_files(sources, tmp_path, monkeypatch):
    """The checks themselves: a clip that is lost, and one whose features changed."""
    damaged = fuzz.make_folder(tmp_path / "damaged", sources, count=3, seed=0, originals=2)
    findings = fuzz.Findings()
    stores = [FakeStore(damaged.originals, 1.0), FakeStore(damaged.originals, 2.0)]
    fuzz.check_store("audio", *stores, damaged=damaged, findings=findings)
    lost, changed = findings.faults
    assert lost.startswith("audio: lost: 00000-cut_anywhere")
    assert changed.startswith(f"audio: untouched, but other features: {damaged.originals[0]}")
    assert findings.offending == set(damaged.paths.values())


class FakeStore:
    """The part of a store that the checks use."""

    pooled = True

    def __init__(self, ids: list[str], value: float):
        self.ids, self.value = ids, value

    def read(self, clips: list[str]) -> object:
        return fuzz.np.full((len(clips), 1, 4), self.value)

    def failures(self) -> list:
        return []

    def validate(self) -> list[str]:
        return []


def test_lies_stay_within_the_file():
    data = b"....mvhd" + bytes(40)
    for seed in range(50):
        changed = fuzz.lie(random.Random(seed), data, fuzz.DURATIONS)
        assert len(changed) == len(data)
        assert changed[:8] == data[:8]
        assert set(range(8, 48)) >= {at for at in range(len(data)) if changed[at] != data[at]}


@pytest.mark.slow
def test_a_run_that_does_not_end_is_stopped(tmp_path):
    shutil.copy(fuzz.DEMO / "clips" / "spk01_001.mp4", tmp_path)
    ran = fuzz.run(["extract", "faces", tmp_path, "-o", tmp_path / "faces.h5"], tmp_path / "log", limit=0.5)
    assert ran.code is None
    assert ran.result == {}
