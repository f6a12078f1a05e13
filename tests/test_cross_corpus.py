"""The example data/cross-corpus: from the folders of two corpora to the scores on the second."""

import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import typer

from mertool.cli import app

EXAMPLE = Path(__file__).parents[1] / "data" / "cross-corpus"
SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI")
CODES = {"neutral": ("01", "NEU"), "happy": ("03", "HAP"), "sad": ("04", "SAD"), "angry": ("05", "ANG")}


def make(*variables, dry=False):
    command = ["make", "-C", str(EXAMPLE), *(["-n"] if dry else []), *variables]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_every_command_of_the_example_parses():
    said = make("TRAIN=iemocap", "TRAIN_FOLDER=a", "TEST=ravdess", "TEST_FOLDER=b", "OUT=build/x", dry=True)
    lines = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("mertool ")]
    assert [words[0] for words in lines] == ["manifest", "extract", "fuse", "manifest", "predict", "evaluate"]
    for words in lines:
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("mertool", words)


@pytest.fixture
def corpora(tmp_path, demo_rows):
    """The demo's clips with the file names of RAVDESS (training) and of CREMA-D (test)."""
    taken: Counter[tuple[str, str]] = Counter()
    for row in demo_rows.values():
        if row["label"] not in CODES:
            continue
        code, letters = CODES[row["label"]]
        actor = int(row["speaker"][-2:])
        number = taken[row["speaker"], row["label"]]
        taken[row["speaker"], row["label"]] += 1
        if row["split"] == "train":
            name = f"ravdess/01-01-{code}-01-{1 + number // 2:02d}-{1 + number % 2:02d}-{actor:02d}.mp4"
        else:
            name = f"crema-d/{1000 + actor}_{SENTENCES[number]}_{letters}_XX.mp4"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(row["path"], tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_from_two_folders_to_scores(corpora, tmp_path, tiny_encoders):
    variables = (
        f"MERTOOL={sys.executable} -m mertool",
        *("TRAIN=ravdess", f"TRAIN_FOLDER={corpora / 'ravdess'}", "TEST=crema-d", f"TEST_FOLDER={corpora / 'crema-d'}"),
        *(f"OUT={tmp_path / 'out'}", f"ENCODER={tiny_encoders['hubert']}", "OPTIONS=--partial"),
    )
    make(*variables)
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert scores["classes"] == ["neutral", "angry", "happy", "sad"]
    assert "up to date" in make(*variables)
