"""docs/reference.md is what the declarations of the options say."""

import subprocess
import sys
from pathlib import Path

from mertool.cli.reference import write_reference

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_reference_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == write_reference(), "run `make docs`"


def test_the_reference_has_every_command_and_its_options():
    page = write_reference()
    for name in ("extract audio", "probe-layers", "finetune", "align", "fuse", "predict", "evaluate", "store ls"):
        assert f"\n## mertool {name}\n" in page
    assert "| `--dropout` | `0.3` | Dropout in the head, drawn by --search (a number from 0 to below 1). |" in page
    assert "| `--calibrate`, `--no-calibrate` | yes | Calibrate probabilities by temperature scaling. |" in page


def test_no_help_text_needs_a_heavy_library():
    script = (
        "import sys; from mertool.cli.reference import write_reference; write_reference()\n"
        "assert not {'torch', 'transformers', 'h5py', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PAGE.parents[1])
    assert done.returncode == 0, done.stderr
