"""Runs: whole or not there, found again by their key, and never in somebody else's folder."""

import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import pytest
import torch

from mertool.errors import MertoolError
from mertool.options import Options, option, shared
from mertool.runs import Run, cache_key, find_reusable_run, load_tensors, new_run


@dataclass(frozen=True, kw_only=True)
class StageOptions(Options):
    overwrite: bool = shared.overwrite()
    width: int | None = option(None, help="Width.")
    device: str = shared.device()
    folds: int | Path = shared.folds()


def make(folder, key="k1", score=1, stage="fuse", tensors=None, **facts) -> Run:
    with new_run(folder, stage, key=key, options={"seed": 0}, **facts) as draft:
        draft.metrics["score"] = score
        for name, value in (tensors or {}).items():
            draft.save_tensors(name, {"weight": value})
    return Run.read(folder, stage)


def test_a_run_says_what_it_is(tmp_path):
    run = make(tmp_path / "run", labels=["sad", "happy"])
    assert run.info["stage"] == "fuse"
    assert run.info["options"] == {"seed": 0}
    assert run.info["labels"] == ["sad", "happy"]
    assert {"python", "torch", "numpy"} <= set(run.info["versions"])
    assert run.metrics == {"score": 1}
    assert os.listdir(tmp_path) == ["run"]


def test_a_run_names_its_sources_and_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = {"manifest": Path("clips.csv"), "stores": [Path("a.h5"), Path("b.h5")], "probe": None, "unlabelled": ()}
    info = make(Path("run"), sources=sources, started=time.time() - 90).info
    stores = [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]
    assert info["sources"] == {"manifest": [str(tmp_path / "clips.csv")], "stores": stores}
    assert info["folder"] == str(tmp_path / "run")
    assert 90 <= info["seconds"] < 100
    assert abs(datetime.fromisoformat(info["finished"]).timestamp() - time.time()) < 10
    assert info["machine"]["cores"] == os.cpu_count()


def test_tensors_are_read_again(tmp_path):
    run = make(tmp_path / "run", tensors={"model": torch.arange(6.0).reshape(2, 3).T})
    torch.testing.assert_close(
        load_tensors(run.folder / "model.safetensors")["weight"], torch.arange(6.0).reshape(2, 3).T
    )


def test_a_new_run_replaces_the_old_one_as_a_whole(tmp_path):
    make(tmp_path / "run", tensors={"old": torch.ones(1)})
    run = make(tmp_path / "run", key="k2", score=2, tensors={"new": torch.ones(1)})
    assert run.metrics == {"score": 2}
    assert sorted(p.name for p in run.folder.iterdir()) == ["metrics.json", "new.safetensors", "run.json"]
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_leaves_the_old_run_and_no_other_folder(error, tmp_path):
    make(tmp_path / "run")
    with pytest.raises(error), new_run(tmp_path / "run", "fuse", key="k2", options={}) as draft:
        draft.save_tensors("half", {"weight": torch.ones(1)})
        raise error
    assert Run.read(tmp_path / "run", "fuse").info["key"] == "k1"
    assert os.listdir(tmp_path) == ["run"]


def test_an_error_of_a_first_run_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), new_run(tmp_path / "run", "fuse", key="k", options={}):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_the_run_is_not_there_before_it_is_whole(tmp_path):
    with new_run(tmp_path / "run", "fuse", key="k", options={}) as draft:
        assert draft.folder.is_dir()
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run" / "run.json").exists()


def test_a_rename_that_fails_leaves_the_old_run_in_place(tmp_path, monkeypatch):
    make(tmp_path / "run")
    real = os.replace

    def fail(source, target):
        if ".tmp-" in str(source) and str(target).endswith("run"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(MertoolError, match="cannot write"), new_run(tmp_path / "run", "fuse", key="k2", options={}):
        pass
    assert Run.read(tmp_path / "run", "fuse").info["key"] == "k1"


def test_a_full_disk_is_one_line_and_leaves_the_old_run(tmp_path, monkeypatch):
    make(tmp_path / "run")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(MertoolError, match="the disk is full"):
        patch.setattr(os, "fsync", full)
        make(tmp_path / "run", key="k2", tensors={"model": torch.ones(9)})
    assert Run.read(tmp_path / "run", "fuse").info["key"] == "k1"
    assert os.listdir(tmp_path) == ["run"]


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    make(Path("runs/probe"))
    assert (tmp_path / "runs" / "probe" / "run.json").exists()


# ---------------------------------------------------------------- found again


def test_the_same_key_finds_its_run(tmp_path):
    make(tmp_path / "run")
    assert find_reusable_run(tmp_path / "run", "fuse", key="k1", options=StageOptions()).info["key"] == "k1"
    assert find_reusable_run(tmp_path / "run", "fuse", key="k1", options=StageOptions(overwrite=True)) is None


def test_a_run_of_other_options_is_not_replaced_unasked(tmp_path):
    run = tmp_path / "run"
    key = cache_key("probe-layers", {"width": 2}, {"store": "a"})
    with new_run(run, "probe-layers", key=key, options=asdict(StageOptions(width=2, folds=Path("a.csv")))):
        pass
    options = StageOptions(width=3, device="cuda", folds=Path("a.csv"))
    with pytest.raises(MertoolError, match=r"options \(width: 2 there, 3 here\): give --overwrite to replace it, or"):
        find_reusable_run(
            run, "probe-layers", key=cache_key("probe-layers", {"width": 3}, {"store": "a"}), options=options
        )
    assert (
        find_reusable_run(
            run,
            "probe-layers",
            key=cache_key("probe-layers", {"width": 3}, {"store": "a"}),
            options=StageOptions(overwrite=True),
        )
        is None
    )
    # Data that changed make it anew: a pipeline is run again.
    assert (
        find_reusable_run(
            run, "probe-layers", key=cache_key("probe-layers", {"width": 2}, {"store": "b"}), options=StageOptions()
        )
        is None
    )


def test_a_free_place_has_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    assert find_reusable_run(tmp_path / "nowhere", "fuse", key="k1", options=StageOptions()) is None
    assert find_reusable_run(tmp_path / "empty", "fuse", key="k1", options=StageOptions()) is None


def test_a_key_names_stage_options_and_inputs():
    keys = [
        cache_key("fuse", {"a": 1}, {"x": "d"}),
        cache_key("align", {"a": 1}, {"x": "d"}),
        cache_key("fuse", {"a": 2}, {"x": "d"}),
        cache_key("fuse", {"a": 1}, {"x": "e"}),
    ]
    assert len(set(keys)) == 4
    assert cache_key("fuse", {"a": 1}, {"x": "d"}) == keys[0]


def test_the_digest_follows_the_tensors_and_not_the_folder(tmp_path):
    one = make(tmp_path / "1", tensors={"model": torch.ones(3)})
    same = make(tmp_path / "2", key="k2", tensors={"model": torch.ones(3)})
    other = make(tmp_path / "3", tensors={"model": torch.zeros(3)})
    assert one.digest() == same.digest() != other.digest()
    assert make(tmp_path / "4", key="k4").digest() == "k4"


def test_adapters_that_change_places_have_another_digest(tmp_path):
    def adapted(folder, order):
        with new_run(folder, "finetune", key="k", options={}) as draft:
            for name, value in zip("ab", order, strict=True):
                (draft.folder / name).mkdir()
                draft.save_tensors(f"{name}/adapter", {"weight": torch.full((2,), value)})
        return Run.read(folder, "finetune").digest()

    assert adapted(tmp_path / "1", (1.0, 2.0)) != adapted(tmp_path / "2", (2.0, 1.0))


# ---------------------------------------------------------------- refusing


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(MertoolError, match="is not empty and not a run of mertool: give another -o"):
        find_reusable_run(tmp_path, "fuse", key="k", options=StageOptions(overwrite=True))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(MertoolError, match="is a file: give a folder for the run"):
        find_reusable_run(tmp_path / "run", "fuse", key="k", options=StageOptions())


def test_a_run_of_another_stage(tmp_path):
    make(tmp_path / "run", stage="align")
    words = r"is a run of align, one of fuse is needed: give the -o folder of `mertool fuse`"
    with pytest.raises(MertoolError, match=words):
        Run.read(tmp_path / "run", "fuse")
    with pytest.raises(MertoolError, match="holds a run of align: give another -o"):
        find_reusable_run(tmp_path / "run", "fuse", key="k1", options=StageOptions(overwrite=True))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(MertoolError, match=r"is not a run: there is no run.json in it. `mertool fuse` makes one"):
        Run.read(tmp_path, "fuse")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": "k"}', '{"stage": "fuse"}'])
def test_a_damaged_run(content, tmp_path):
    make(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(MertoolError, match=r"run\.json cannot be read .*run `mertool fuse` again with --overwrite"):
        find_reusable_run(tmp_path / "run", "fuse", key="k1", options=StageOptions())
    assert find_reusable_run(tmp_path / "run", "fuse", key="k1", options=StageOptions(overwrite=True)) is None


@pytest.mark.parametrize("name", ["metrics.json", "model.safetensors"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_run_of_which_a_file_is_missing_or_cut_is_made_anew(name, harm, tmp_path):
    run = make(tmp_path / "run", tensors={"model": torch.ones(3)})
    assert run.is_complete
    harm(run.folder / name)
    assert not run.is_complete
    assert find_reusable_run(tmp_path / "run", "fuse", key="k1", options=StageOptions()) is None


def test_metrics_that_are_gone_are_one_line(tmp_path):
    run = make(tmp_path / "run")
    (run.folder / "metrics.json").unlink()
    with pytest.raises(MertoolError, match="the run is damaged, make it again"):
        _ = run.metrics


def test_damaged_tensors(tmp_path):
    run = make(tmp_path / "run", tensors={"model": torch.ones(3)})
    (run.folder / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(MertoolError, match="the run is damaged, make it again"):
        load_tensors(run.folder / "model.safetensors")


def test_json_keeps_chinese_readable(tmp_path):
    run = make(tmp_path / "run", labels=["快乐"])
    assert "快乐" in (run.folder / "run.json").read_text(encoding="utf-8")
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["labels"] == ["快乐"]


# ---------------------------------------------------------------- files from strangers


@pytest.mark.parametrize(
    "content", ["[" * 5000, '{"stage": "fuse", "stage": "align", "key": "k"}', "[]", '{"key": 1}', "{}"]
)
def test_a_hostile_record_is_an_error_of_one_line(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(MertoolError, match=r"run\.json cannot be read .*run `mertool fuse` again") as caught:
        Run.read(tmp_path, "fuse")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "model.safetensors"])
def test_a_pipe_in_a_run_does_not_block(name, tmp_path):
    run = make(tmp_path / "run", tensors={"model": torch.ones(1)})
    (run.folder / name).unlink()
    os.mkfifo(run.folder / name)
    with pytest.raises(MertoolError, match=r"not a (regular )?file"):
        _ = Run.read(run.folder, "fuse").metrics, load_tensors(run.folder / "model.safetensors")


def test_scores_that_are_not_finite_are_written_as_null(tmp_path):
    with new_run(tmp_path / "run", "fuse", key="k", options={}) as draft:
        draft.metrics["cka"] = [1.0, float("nan"), (float("inf"), 2)]
    assert Run.read(tmp_path / "run", "fuse").metrics == {"cka": [1.0, None, [None, 2]]}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("encoder", []),
        ("encoder", {"name": "e", "checkpoint": ["/"], "weights": "w"}),
        ("encoder", {"name": "e", "checkpoint": "e"}),
        ("adapter_of_clip", ["final"]),
        ("adapter_of_clip", {"a": 1}),
        ("folds", {"a": "0"}),
        ("origin", {"encoder": "e"}),
        ("origin", {}),
        ("recipe", {}),
        ("video", [1]),
        ("sizes", 3),
        ("window", [1, 2, 3]),
        ("window", ["1", "2"]),
    ],
)
def test_an_entry_that_no_stage_writes_is_refused(entry, value, tmp_path):
    make(tmp_path / "run", **{entry: value})
    with pytest.raises(MertoolError, match=rf"run\.json cannot be read \(no stage writes such an entry: {entry}\)"):
        Run.read(tmp_path / "run", "fuse", entry)
