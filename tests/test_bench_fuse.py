"""The benchmark of fusion runs; how fast is no matter here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "bench" / "fuse.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    output = tmp_path_factory.mktemp("bench") / "fuse.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--tiny", "--turns", "1", "--output", output]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(output.read_text(encoding="utf-8"))["rows"]}


def test_the_rows(rows):
    assert set(rows) == {"fuse/protocol", "fuse/protocol-fused"}
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])


def test_the_whole_protocol_is_the_epochs_of_all_its_models(rows):
    row = rows["fuse/protocol"]
    assert sum(row["models_by_width"].values()) == row["draws"] * 5
    hours = sum(
        100 * count * sum(row["epoch_seconds"]["ours"][width]) / len(row["epoch_seconds"]["ours"][width]) / 3600
        for width, count in row["models_by_width"].items()
    )
    assert row["hours"]["mertool"] == pytest.approx(hours)
