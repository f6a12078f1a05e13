"""An option is added in one place: help, --config, checks, the record of a run and the reference follow."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mertool.manifest import EMOTIONS

ROOT = Path(__file__).parents[2]
BEFORE = '    estimator: str = option("logistic"'
DECLARATION = '    warm_starts: int = option(0, help="Warm starts of each probe.", minimum=0, maximum=9)\n'


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A function that runs Python in a copy of the package with one more option of probe-layers."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "mertool", folder / "mertool", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "mertool" / "options" / "probe_layers.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(BEFORE) == 1
    path.write_text(text.replace(BEFORE, DECLARATION + BEFORE), encoding="utf-8")

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)

    return run


def test_a_new_option_is_in_the_help_and_in_the_reference(copy):
    assert "Warm starts of each probe" in copy("-m", "mertool", "probe-layers", "--help").stdout
    row = "| `--warm-starts` | `0` | Warm starts of each probe (a number from 0 to 9). |"
    assert row in copy("-m", "mertool.cli.reference").stdout


def test_a_new_option_is_checked(copy):
    done = copy("-m", "mertool", "probe-layers", "s.h5", "-m", "m.csv", "-o", "run", "--warm-starts", 10)
    assert done.returncode == 2
    assert "--warm-starts" in done.stderr
    script = "from mertool.options.probe_layers import ProbeLayersOptions as Options; Options(warm_starts=10)"
    assert "--warm-starts 10: give a number from 0 to 9" in copy("-c", script).stderr


def test_a_new_option_is_read_from_a_file_and_recorded_with_the_run(copy, make_store, write_manifest, tmp_path):
    labels = [EMOTIONS[number % 2] for number in range(24)]
    rows = [{"clip": f"c{n}", "path": "x.mp4", "label": label} for n, label in enumerate(labels)]
    values = np.random.default_rng(0).normal(0, 1, (24, 3, 4)).astype(np.float32)
    store = make_store(tmp_path / "audio.h5", "audio", {f"c{n}": value for n, value in enumerate(values)})
    manifest = write_manifest(tmp_path / "clips.csv", rows)
    config = tmp_path / "mertool.toml"
    config.write_text("[probe-layers]\nwarm-starts = 3\nfolds = 2\nseeds = 1\nmlp = false\n", encoding="utf-8")
    run = ["-m", "mertool", "probe-layers", store, "-m", manifest, "-o", tmp_path / "run", "--config", config, "-q"]
    done = copy(*run)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["options"]
    assert (recorded["warm_starts"], recorded["folds"], recorded["mlp"]) == (3, 2, False)
    # It is part of the key of the run, so another value is another run.
    assert "warm_starts: 3 there, 4 here" in copy(*run, "--warm-starts", 4).stderr
