"""The benchmark of extraction runs and has the rows that docs/benchmarks.md shows; its speed is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "bench" / "extract.py"
# Of both sides: where the engine's own number format is another, a row of float32 follows.
ENCODERS = ("audio/hubert-base", "audio/hubert-large", "video/clip-vit-b16", "text/bert-base")
OTHERS = ("encoder-share/hubert-base", "store/read-all", "store/read-pooled")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """What the script writes about tiny encoders."""
    output = tmp_path_factory.mktemp("bench") / "extract.json"
    command = [sys.executable, SCRIPT, "--tiny", "--clips", "3", "--repeat", "1", "--device", "cpu", "--output", output]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads fight on a busy machine
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text(encoding="utf-8"))


def test_rows_are_those_of_the_document(result):
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    halves = {name for name in ENCODERS if f"{name}-float32" in names}
    assert halves in (set(), set(ENCODERS))
    assert set(names) == {*ENCODERS, *OTHERS, *(f"{name}-float32" for name in halves)}


def test_a_ratio_is_the_value_by_the_baseline(result):
    for row in result["rows"]:
        assert {"name", "value", "unit", "baseline", "ratio"} <= set(row)
        assert row["value"] > 0 and row["baseline"] > 0, row["name"]
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"]), row["name"]


def test_both_sides_are_alike_in_what_they_made(result):
    for row in result["rows"]:
        assert row.get("min_cosine", 1.0) > 0.99, row["name"]


def test_the_machine_and_the_versions_are_told(result):
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert result["versions"]["python"]
