"""A full disk: one line of error, exit 1, existing files stay, and the same command finishes once there is room.

A full disk is simulated by a limit on the size of a file (EFBIG from the kernel, for HDF5 too), and by calls that
raise ENOSPC.
"""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.store import ClipFeatures, FeatureStore, StoreWriter, merge_stores, parts_folder, write_store, writer

POOLED = Recipe(modality="audio", encoder="tiny", weights="w0", layers=(0, 1), pool="mean", storage_dtype="float32")
FRAMES = Recipe(modality="video", encoder="tiny", weights="w0", layers=(4,), pool="none", storage_dtype="float32")
RECIPES = {"pooled": POOLED, "frames": FRAMES}
CLIPS = [f"clip{number}" for number in range(12)]
FULL = r"^the disk is full: "


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of every file of this process to `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ, so writes fail with EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def features(recipe: Recipe, clip: str) -> ClipFeatures:
    rng = np.random.default_rng(list(clip.encode()))
    return ClipFeatures(
        clip,
        "d",
        rng.normal(size=(2 if recipe.pool == "mean" else 3, 1000)),
        seconds=1.0,
        frames_seen=3,
        face_share=1.0,
    )


def extract(path: Path, recipe: Recipe, clips: list[str]) -> None:
    """Write a store as a run of `extract` does."""
    with StoreWriter(path, recipe, {}) as out:
        for clip in clips:
            if clip not in out.done:
                out.add(features(recipe, clip))
        out.finish(clips)


def content(path: Path) -> dict[str, list]:
    with FeatureStore(path) as store:
        assert store.validate() == []
    with h5py.File(path) as file:
        names = [name for name in ("values", "offset", "length", "clips/id", "clips/digest") if name in file]
        return {name: file[name][:].tolist() for name in names}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(writer, "PART_CLIPS", 3)


@pytest.fixture(params=RECIPES)
def recipe(request) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture
def undisturbed(tmp_path, recipe) -> dict[str, list]:
    """The content of a store of an undisturbed run."""
    extract(tmp_path / "undisturbed" / "store.h5", recipe, CLIPS)
    return content(tmp_path / "undisturbed" / "store.h5")


def test_no_room_for_a_part(tmp_path, recipe, undisturbed):
    path = tmp_path / "store.h5"
    with largest_file(8_000), pytest.raises(MertoolError, match=FULL + r"cannot write .*store\.h5\.parts/part-"):
        extract(path, recipe, CLIPS)
    assert not path.exists()
    assert [p.name for p in tmp_path.rglob("*") if "tmp-" in p.name] == []
    extract(path, recipe, CLIPS)
    assert content(path) == undisturbed


def in_a_process(action: str, *arguments: object) -> tuple[int, list[str]]:
    """Run a function of this file in a process, because HDF5 may crash; return the exit code and the printed lines."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_disk_full as here; from mertool.errors import MertoolError\n"
        f"try: here.{action}(*sys.argv[1:])\n"
        "except MertoolError as error: print(error); sys.exit(1)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]


def extract_into(size: str, path: str, kind: str) -> None:
    writer.PART_CLIPS = 3
    with largest_file(int(size)):
        extract(Path(path), RECIPES[kind], CLIPS)


def merge_into(size: str, *paths: str) -> None:
    with largest_file(int(size)):
        merge_stores([Path(path) for path in paths[:-1]], Path(paths[-1]))


@pytest.mark.parametrize("more", [2_000, 20_000])
def test_no_room_for_the_merge(more, tmp_path, recipe, undisturbed):
    path = tmp_path / "store.h5"
    extract(path, recipe, CLIPS[:6])
    before = path.read_bytes()
    kind = next(kind for kind, value in RECIPES.items() if value == recipe)
    code, lines = in_a_process("extract_into", len(before) + more, path, kind)
    assert code == 1, "HDF5 crashed (-11, -6)"
    assert len(lines) == 1
    assert lines[0].startswith(f"the disk is full: cannot write {path}")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.h5", "store.h5.parts", "undisturbed"]
    with StoreWriter(path, recipe, {}) as out:
        assert set(out.done) == set(CLIPS), "finished clips are lost"
    extract(path, recipe, CLIPS)
    assert content(path) == undisturbed
    assert not parts_folder(path).exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_every_single_write_may_fail(call, tmp_path, recipe, undisturbed, monkeypatch):
    """Whichever call fails, the old store stays or the new one is complete, and the next run finishes it."""
    real = getattr(os, call)
    failed = 0
    for number in range(40):
        path = tmp_path / f"{number}.h5"
        extract(path, recipe, CLIPS[:3])
        before = content(path)
        calls = iter(range(100))

        def once(*arguments, fails_at=number, counter=calls):
            if next(counter) == fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patch, suppress(MertoolError):
            patch.setattr(os, call, once)
            extract(path, recipe, CLIPS)
            if next(calls) <= number:
                break  # fewer calls than that: none failed
        failed += 1
        assert content(path) in (before, undisturbed)
        assert not list(tmp_path.glob(".*tmp-*"))
        extract(path, recipe, CLIPS)
        assert content(path) == undisturbed
        assert not parts_folder(path).exists()
    assert 4 <= failed < 40


def test_no_room_for_a_merged_store(tmp_path, recipe):
    stores = [tmp_path / "1.h5", tmp_path / "2.h5"]
    extract(stores[0], recipe, CLIPS[:6])
    extract(stores[1], recipe, CLIPS[6:])
    code, lines = in_a_process("merge_into", 80_000, *stores, tmp_path / "both.h5")
    assert code == 1, "HDF5 crashed (-11, -6)"
    assert len(lines) == 1
    assert lines[0].startswith("the disk is full: cannot write")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.h5", "2.h5"]


def test_no_room_for_a_store_that_is_written_at_once(tmp_path):
    with largest_file(8_000), pytest.raises(MertoolError, match=FULL):
        write_store(tmp_path / "store.h5", POOLED, {}, features=[features(POOLED, clip) for clip in CLIPS])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_prints_one_line_and_exits_with_1(tmp_path, demo, tiny_encoders, call):
    rows = (demo / "manifest.csv").read_text(encoding="utf-8").splitlines()[:16]
    (tmp_path / "clips.csv").write_text("\n".join(rows), encoding="utf-8")
    arguments = ["extract", "text", tmp_path / "clips.csv", "--encoder", tiny_encoders["bert"], "--pool", "none", "-o"]
    limited = ["bash", "-c", 'ulimit -S -f 20; exec "$@"', "bash", sys.executable, "-m", "mertool"]
    command = [*limited, *map(str, arguments), str(tmp_path / "text.h5"), "-q"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # threads fight on a busy machine
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert stopped.returncode == 1
    (line,) = stopped.stderr.splitlines()
    assert line.startswith(f"error: the disk is full: cannot write {tmp_path / 'text.h5.parts'}")
    assert line.endswith("free some space and run the same command again")
    assert stopped.stdout == ""
    assert not (tmp_path / "text.h5").exists()
    for name in ("text.h5", "undisturbed.h5"):
        call(*arguments, tmp_path / name, "-q")
    assert content(tmp_path / "text.h5") == content(tmp_path / "undisturbed.h5")
