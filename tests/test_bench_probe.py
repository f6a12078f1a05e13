"""The benchmark of probes runs; how fast is no matter here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "bench" / "probe.py"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "probe.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--tiny", "--output", output]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text(encoding="utf-8"))


def test_the_rows(result):
    kinds = ("logistic", "logistic-loose", "ridge", "ridge-one")
    names = {f"probe/{kind}{end}" for kind in kinds for end in ("", "-isotropic")}
    assert {row["name"] for row in result["rows"]} == names
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])


def test_both_sides_reach_the_same_optimum(result):
    for row in result["rows"]:
        assert row["agree"] > 0.98, row["name"]
        if row["objective"]:
            assert row["objective"]["most"] < 1e-4
