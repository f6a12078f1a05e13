"""The benchmark of alignment runs, and both sides do the same work; how fast is no matter here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "bench" / "align.py"


def test_the_rows(tmp_path):
    output = tmp_path / "align.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--tiny", "--device", "cpu", "--output", output]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == ["align/memory", "align/speed"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])
        assert row["loss_difference"] < 1e-3
    assert rows[0]["start"] < rows[0]["value"]
