"""data/mer: the Makefile, from a stand-in release of 2024 to its submission, with failures on the way."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    *("extract audio", "extract video", "extract text", "probe-layers", "finetune", "extract audio", "align", "fuse"),
    "predict",
]


@pytest.fixture(scope="module")
def make() -> Callable[..., subprocess.CompletedProcess]:
    """A function (variables, targets and flags) that runs make in data/mer with this code, offline."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    tools = [f"MERTOOL={sys.executable} -m mertool", f"PYTHON={sys.executable}"]

    def run(*given: object) -> subprocess.CompletedProcess:
        command = ["make", "-C", ROOT / "data" / "mer", *tools, *given]
        return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1800, env=environment)

    return run


def stages_of(output: str) -> list[str]:
    """The stages in the output of make, or of make -n."""
    return re.findall(r"^(?:echo ')?mertool (extract \w+|[a-z-]+)", output.replace("@echo '", "echo '"), re.MULTILINE)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["YEAR=2022", "clips.csv"], "unknown YEAR '2022': valid: 2026, 2025, 2024, 2023"),
        (["YEAR=2024", "clips.csv"], "where is the release? Give RELEASE=/path of the unpacked MER2024"),
        (["YEAR=2024", "OUT=/tmp/a b", "clips.csv"], "OUT='/tmp/a b' has spaces"),
    ],
)
def test_a_wrong_variable_is_one_line(given, words, make, tmp_path):
    out = [] if any(word.startswith("OUT=") for word in given) else [f"OUT={tmp_path / 'out'}"]
    result = make(*given, *out)
    assert result.returncode != 0
    assert result.stderr.count(words) == 1


def test_plain_make_prints_the_targets_and_writes_nothing(make, tmp_path):
    result = make(f"OUT={tmp_path / 'out'}")
    assert "submission.csv" in result.stdout
    assert not (tmp_path / "out").exists()


def test_the_stages_of_each_year(make, tmp_path):
    """MER-Cross needs no text; its aligner is trained on the audio of other clips than those to submit."""
    for year, without in {"2024": set(), "2026": {"extract text"}}.items():
        result = make("-n", f"YEAR={year}", "RELEASE=/nowhere", f"OUT={tmp_path / year}", "submission.csv")
        assert set(stages_of(result.stdout)) == set(STAGES) - without, result.stderr
        fused = re.search(r"mertool fuse (.*?) --manifest", result.stdout)[1].split()
        names = ["aligned", "video"] if year == "2026" else ["acoustic", "aligned", "text"]
        assert fused == [str(tmp_path / year / "features" / f"{name}.h5") for name in names]


def test_features_of_another_person_are_warned_of(make, tmp_path):
    given = ["-n", "RELEASE=/nowhere", f"OUT={tmp_path / 'out'}", "submission.csv", "FUSED=acoustic aligned text"]
    words = "YEAR=2026: acoustic text of the clips to submit show another person than the one to recognise"
    assert words in make(*given, "YEAR=2026").stderr
    assert "another person" not in make(*given, "YEAR=2025").stderr


@pytest.mark.slow
def test_from_the_release_of_2024_to_its_submission(
    make: Any, make_release: Any, mer_scripts: SimpleNamespace, tiny_encoders: Any, whisper: Path, tmp_path: Path
) -> None:
    release = make_release(tmp_path / "mer 2024 dataset", "2024")
    before = {file: file.stat().st_mtime_ns for file in release.folder.rglob("*")}
    out = tmp_path / "out"
    given = [
        *("YEAR=2024", f"RELEASE={release.folder}", f"OUT={out}", "submission.csv", "-j2"),
        *(f"AUDIO={tiny_encoders['hubert']}", f"VIDEO={tiny_encoders['clip']}", f"TEXT={tiny_encoders['bert']}"),
        *("VIDEO_OPTIONS=--fps 1 --no-keep-faces", f"ASR={whisper}", "ASR_OPTIONS=--no-vad", "MAX_FAILED=0.5"),
        *("PROBE_OPTIONS=--folds 3 --seeds 1 --width 2 --no-mlp", "ALIGN_OPTIONS=--width 16 --epochs 2"),
        "FUSE_OPTIONS=--epochs 2 --seeds 1 --width 16",
    ]
    failed = make(*given, "FINETUNE_OPTIONS=--folds 3 --epochs none")
    assert failed.returncode != 0
    assert (out / "features" / "audio.h5").exists()
    assert not (out / "submission.csv").exists()

    made = make(*given, "FINETUNE_OPTIONS=--folds 3 --epochs 1 --size 4")
    assert made.returncode == 0, made.stderr
    resumed = stages_of(made.stdout)
    assert "probe-layers" not in resumed, "a stage that was done ran again"
    assert [stage for stage in STAGES[4:] if stage in resumed] == STAGES[4:]
    row = mer_scripts.years.read_years()["2024"]
    assert mer_scripts.check.check_submission(out / "submission.csv", out / "candidates.csv", row) == 4
    assert {file: file.stat().st_mtime_ns for file in release.folder.rglob("*")} == before

    again = make("-n", *given, "FINETUNE_OPTIONS=--folds 3 --epochs 1 --size 4")
    assert stages_of(again.stdout) == []
    other = make("-n", *given, "FINETUNE_OPTIONS=--folds 3 --epochs 1 --size 4", "PREDICT_OPTIONS=--quiet")
    assert stages_of(other.stdout) == ["predict"]
