"""The examples of docs/extending.md are added to a copy of the package, where the contract tests must pass on them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# Rows are blocks of text, because a formatter of Python would take their indentation away.
EXAMPLES = re.findall(r"^```(?:python|text) (file|row)=(\S+)(?: in=(\S+))?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package and its tests with every example of the page added, each to one file."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("mertool", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for kind, path, table, code in EXAMPLES:
        target = folder / path
        if kind == "file":
            assert not target.exists()
            target.write_text(code, encoding="utf-8")
        else:
            before = target.read_text(encoding="utf-8")
            after = before.replace(f"{table} = (\n", f"{table} = (\n{code}", 1)
            assert after != before
            target.write_text(after, encoding="utf-8")
    return folder


def run(copy, *command):
    environment = {**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_the_page_has_an_example_of_each_kind():
    assert [path for _, path, _, _ in EXAMPLES] == [
        "mertool/encoders/table.py",
        "mertool/encoders/families/audio_spectrogram_transformer.py",
        "mertool/adapters/methods/vera.py",
        "mertool/fusion/heads/mean.py",
        "mertool/alignment/losses/l1.py",
        "mertool/corpora/savee.py",
        "mertool/errors.py",
    ]


@pytest.mark.parametrize(
    ("tests", "name"),
    [
        ("tests/adapters/methods/test_peft_methods.py", "vera"),
        ("tests/fusion/test_fusion_heads.py", "mean"),
        ("tests/alignment/test_alignment_losses.py", "l1"),
        ("tests/corpora/test_corpora.py", "savee"),
        ("tests/test_architecture.py", "tiers or circle"),
    ],
)
def test_contract_tests_pass_on_the_examples(copy, tests, name):
    printed = run(copy, "-m", "pytest", "-p", "no:cacheprovider", "-v", tests, "-k", name)
    assert int(re.search(r"(\d+) passed", printed).group(1)) > 2


def test_help_names_the_new_choices(copy):
    assert "mean" in run(copy, "-m", "mertool", "fuse", "--help")
    assert "vera" in run(copy, "-m", "mertool", "finetune", "--help")
    assert "l1" in run(copy, "-m", "mertool", "align", "--help")


def test_the_new_row_is_in_the_table_of_encoders(copy):
    rows = json.loads(run(copy, "-m", "mertool", "models", "--json"))["encoders"]
    assert [row["checkpoint"] for row in rows if row["name"] == "wavlm-base"] == ["microsoft/wavlm-base"]


def test_the_new_corpus_is_read_by_its_name(copy, tmp_path):
    for name in ("DC_a01.wav", "KL_su15.wav"):
        (tmp_path / name).touch()
    options = ("--corpus", "savee", "--partial", "-o", str(tmp_path / "clips.csv"), "--json")
    summary = json.loads(run(copy, "-m", "mertool", "manifest", str(tmp_path), *options))
    assert summary["labels"] == {"angry": 1, "surprise": 1}
    assert (tmp_path / "clips.folds.csv").read_text(encoding="utf-8") == "clip,fold\nDC_a01,DC\nKL_su15,KL\n"
    assert "savee" in run(copy, "-m", "mertool", "corpora")


def test_the_new_reason_can_be_raised(copy):
    run(copy, "-c", "from mertool.errors import ClipError; assert 'encrypted' in ClipError('encrypted').message")


FAMILY = """
import sys, numpy as np, torch
from pathlib import Path
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
from mertool.encoders import count_layers, resolve_encoder
from mertool.encoders.loading import load_encoder
torch.manual_seed(0)
folder = Path(sys.argv[1])
config = ASTConfig(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_length=128, num_mel_bins=32
)
ASTModel(config).save_pretrained(folder)
ASTFeatureExtractor(max_length=128, num_mel_bins=32).save_pretrained(folder)
reference = resolve_encoder(str(folder), "audio")
encoder = load_encoder(reference, "audio", device=torch.device("cpu"), dtype=torch.float32)
rng = np.random.default_rng(0)
waves = [rng.normal(0, 0.1, n).astype(np.float32) for n in (8000, 16000)]
layers = tuple(range(count_layers(reference) + 1))
together = encoder.encode(waves, layers)
assert together[0].shape[0] == 4 and together[0].shape[2] == 32
for wave, values in zip(waves, together):
    torch.testing.assert_close(encoder.encode([wave], layers)[0], values, atol=1e-5, rtol=1e-5)
"""


def test_a_model_of_the_new_family_is_loaded_from_a_folder(copy, tmp_path):
    run(copy, "-c", FAMILY, str(tmp_path / "model"))
