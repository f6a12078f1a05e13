"""A finetune run from strangers whose run.json makes no sense is one line."""

import json
import os

import pytest

from mertool.errors import MertoolError

ENCODER = {"name": "e", "checkpoint": "/not/there", "weights": "0" * 64, "revision": None}


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": []},
        {"encoder": "hubert-base"},
        {"encoder": {**ENCODER, "checkpoint": ["/"]}},
        {"encoder": {**ENCODER, "weights": None}},
        {"adapter_of_clip": ["final"]},
        {"adapter_of_clip": {"a": 1}},
        {"adapter_of_clip": None},
    ],
)
def test_a_finetune_run_of_wrong_types(settings, invoke, tmp_path, write_manifest, demo_rows):
    manifest = write_manifest(tmp_path / "clips.csv", [demo_rows["spk01_001"]])
    run = tmp_path / "run"
    run.mkdir()
    info = {"stage": "finetune", "key": "k", "encoder": ENCODER, "adapter_of_clip": {}, **settings}
    (run / "run.json").write_text(json.dumps(info))
    result = invoke("extract", "audio", manifest, "-o", tmp_path / "a.h5", "--adapter", run)
    assert isinstance(result.exception, MertoolError), result.exception
    name = next(iter(settings))
    assert f"run.json cannot be read (no stage writes such an entry: {name})" in str(result.exception)


def test_a_pipe_among_the_tensors_of_a_run_is_never_opened(tmp_path):
    from mertool.runs import Run

    os.mkfifo(tmp_path / "more.safetensors")
    with pytest.raises(MertoolError, match=r"more\.safetensors is missing or not a regular file"):
        Run(tmp_path, {"key": "k"}).digest()
