"""A PEFT method is one file: VeRA, added to a copy of the package, is in the help and passes the contract tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mertool

PACKAGE = Path(mertool.__file__).parent
TESTS = Path(__file__).parent
VERA = '''"""VeRA: trained vectors scale random projections that all modules share (Kopiczko et al., 2024)."""

from peft import VeraConfig

SIZE = 64  # default rank
RATE = 4e-3  # peak learning rate
TARGETS = ("feed_forward.intermediate_dense", "feed_forward.output_dense")


def config(targets: list[str], size: int) -> VeraConfig:
    """Return the PEFT configuration of VeRA of rank `size` on the linear modules `targets`."""
    return VeraConfig(target_modules=targets, r=size, vera_dropout=0.0)
'''


@pytest.fixture
def run(tmp_path):
    """A function (words) that runs Python with a copy of the package that has methods/vera.py."""
    shutil.copytree(PACKAGE, tmp_path / "mertool", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mertool" / "adapters" / "methods" / "vera.py").write_text(VERA)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run_python(*words):
        return subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
            cwd=tmp_path,
        )

    return run_python


def test_a_new_peft_method_is_offered_by_the_help(run):
    assert "vera" in run("-m", "mertool", "finetune", "--help").stdout


@pytest.mark.slow
def test_a_new_peft_method_passes_the_contract_tests(run):
    options = ["-x", "-rp", "-p", "no:cacheprovider", "--rootdir", TESTS.parents[2], "-k", "vera"]
    done = run("-m", "pytest", TESTS, *options)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") >= 20, done.stdout
