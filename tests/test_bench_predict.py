"""The benchmark of prediction runs, and both of its sides predict the same; how fast is no matter here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "bench" / "predict.py"


def test_both_sides_predict_the_same(tmp_path):
    output = tmp_path / "predict.json"
    command = [sys.executable, SCRIPT, "--tiny", "--clips", "3", "--rounds", "1", "--device", "cpu", "--output", output]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads fight on a busy machine
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == ["predict/one-store-per-encoder", "predict/shared-encoder"]
    for row in rows:
        assert row["value"] > 0 and row["unit"] == "clips/s"
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])
        assert row["largest_difference"] < 1e-5
