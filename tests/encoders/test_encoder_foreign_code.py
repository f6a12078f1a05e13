"""A model folder runs no code: none of its own, none that it names, and nobody is asked whether it may."""

import builtins
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mertool.encoders import load_encoder, load_recogniser, resolve_encoder, resolve_recognition
from mertool.encoders.checkpoint_files import loadable_view
from mertool.errors import MertoolError

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertTokenizer, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor
class Config(HubertConfig): pass
class Model(HubertModel): config_class = Config
class Extractor(Wav2Vec2FeatureExtractor): pass
class Tokenizer(BertTokenizer): pass
"""
KERNEL = "some-owner/kernels:attention"


def change(file, **settings):
    """Change settings of a JSON file, or write it."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **settings}))


def with_model_code(folder):
    change(folder / "config.json", auto_map={"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"})


def with_model_type(folder):
    with_model_code(folder)
    change(folder / "config.json", model_type="foreign")


def with_preprocessor_code(folder):
    change(folder / "preprocessor_config.json", auto_map={"AutoFeatureExtractor": "foreign.Extractor"})


def with_preprocessor_type(folder):
    with_preprocessor_code(folder)
    change(folder / "preprocessor_config.json", feature_extractor_type="Foreign")


def with_preprocessor_code_in_config(folder):
    (folder / "preprocessor_config.json").write_text("{}")
    change(folder / "config.json", auto_map={"AutoFeatureExtractor": "foreign.Extractor"})


def with_tokenizer_code(folder):
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["foreign.Tokenizer", None]})


def with_tokenizer_list(folder):
    change(folder / "tokenizer_config.json", auto_map=["foreign.Tokenizer", None], tokenizer_class="Foreign")


def with_kernels(folder):
    change(folder / "config.json", _attn_implementation=KERNEL, experts_implementation=KERNEL, use_kernels=True)


def with_kernels_by_part(folder):
    change(folder / "config.json", attn_implementation={"": KERNEL}, text_config={"_attn_implementation": KERNEL})


def with_generation_code(folder):
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "foreign.py", folder / "custom_generate" / "generate.py")
    change(folder / "generation_config.json", custom_generate=str(folder))


# The model that is changed, and whether it can be loaded all the same, by the classes of transformers.
FORMS = {
    with_model_code: ("hubert_group", "audio", True),
    with_model_type: ("hubert_group", "audio", False),
    with_preprocessor_code: ("hubert_group", "audio", True),
    with_preprocessor_type: ("hubert_group", "audio", False),
    with_preprocessor_code_in_config: ("hubert_group", "audio", True),
    with_tokenizer_code: ("bert", "text", True),
    with_tokenizer_list: ("bert", "text", True),
    with_kernels: ("hubert_group", "audio", True),
    with_kernels_by_part: ("bert", "text", True),
    with_generation_code: ("asr", "asr", True),
}
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


@pytest.fixture
def hostile(tiny_encoders, tmp_path):
    """A function that makes the folder of a form; its code would write tmp_path/marker."""

    def make(form):
        name = FORMS[form][0]
        source = ROOT / "tests/fixtures/tiny_whisper" if name == "asr" else tiny_encoders[name]
        folder = tmp_path / form.__name__
        shutil.copytree(source, folder)
        (folder / "foreign.py").write_text(CODE.format(marker=str(tmp_path / "marker")))
        form(folder)
        return folder

    return make


def load(folder, modality):
    options = {"device": torch.device("cpu"), "dtype": torch.float32}
    if modality == "asr":
        return load_recogniser(resolve_recognition(str(folder)), **options)
    return load_encoder(resolve_encoder(str(folder), modality), modality, **options)


@each_form
def test_no_form_runs_code_or_asks(form, hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("somebody was asked"))
    folder, (_, modality, loads) = hostile(form), FORMS[form]
    if loads:
        model = load(folder, modality).model
        assert type(model).__module__.startswith("transformers.")
        assert model.config._attn_implementation == "eager"
    else:
        with pytest.raises(MertoolError, match=f"{folder} cannot be loaded as .*(code of its own|does not recognize)"):
            load(folder, modality)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", [with_kernels, with_kernels_by_part], ids=lambda form: form.__name__)
def test_kernels_that_a_configuration_names_are_left_out(form, hostile):
    """On a GPU transformers would fetch them from the hub."""
    with loadable_view(hostile(form)) as view:
        assert KERNEL not in (view / "config.json").read_text()
        assert json.loads((view / "config.json").read_text())["hidden_size"] > 0


def test_a_pickle_that_runs_code_is_refused(tiny_encoders, tmp_path):
    class Foreign:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    folder = shutil.copytree(tiny_encoders["hubert_group"], tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Foreign()}, folder / "pytorch_model.bin")
    with pytest.raises(MertoolError, match=f"{folder} cannot be loaded as an encoder for audio"):
        load(folder, "audio")
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@each_form
def test_a_command_that_hears_yes_forever_runs_no_code(
    form, hostile, tmp_path, write_manifest, demo_rows, tiny_encoders
):
    folder, (_, modality, loads) = hostile(form), FORMS[form]
    row = demo_rows["spk01_001"]
    manifest = write_manifest(tmp_path / "clips.csv", [{**row, "text": ""} if modality == "asr" else row])
    recognised = ["text", "--asr", folder, "--no-vad", "--encoder", tiny_encoders["bert"], "--max-failed", 1]
    chosen = recognised if modality == "asr" else [modality, "--encoder", folder]
    command = ["extract", chosen[0], manifest, *chosen[1:], "-o", tmp_path / "features.h5", "--device", "cpu"]
    with subprocess.Popen(["yes", "y"], stdout=subprocess.PIPE) as answers:
        done = subprocess.run(
            [sys.executable, "-m", "mertool", *map(str, command)],
            stdin=answers.stdout,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        )
        answers.kill()
    assert not (tmp_path / "marker").exists()
    assert "y/N" not in done.stdout + done.stderr
    if loads:
        assert done.returncode == 0, done.stderr
    else:
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
