"""What the tests share: the demo clips, tiny encoders of every family, the command line, one small pipeline.

Everything is offline and of random weights. Encoders are made when a test first asks for them, and each
stage of the pipeline runs once per session, so a single test file stays quick.
"""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "data" / "demo"
COLUMNS = ("clip", "path", "label", "text", "speaker", "split", "start", "end")


# ---------------------------------------------------------------- the demo, the command line


@pytest.fixture(scope="session", autouse=True)
def _same_numbers_on_every_cpu() -> Iterator[None]:
    """`--dtype auto` is float32 here also on a CPU that computes bfloat16; tests of bfloat16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mertool.devices.computes_bfloat16", lambda device: device.type == "cuda")
        yield


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder data/demo."""
    return DEMO


@pytest.fixture(scope="session")
def demo_rows() -> dict[str, dict[str, str]]:
    """Rows of the demo's manifest by clip id, paths absolute."""
    with open(DEMO / "manifest.csv", newline="", encoding="utf-8") as file:
        return {row["clip"]: {**row, "path": str(DEMO / row["path"])} for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def write_manifest() -> Callable[[Path, Iterable[dict[str, str]]], Path]:
    """A function (path, rows) that writes a manifest CSV; absolute paths in rows become relative to it."""

    def write(path: Path, rows: Iterable[dict[str, str]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
            writer.writeheader()
            for row in rows:
                where = row["path"]
                where = os.path.relpath(where, path.parent.absolute()) if os.path.isabs(where) else where
                writer.writerow({**row, "path": where})
        return path

    return write


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess]:
    """`python -m mertool ARGS` in a process of its own, without a hub."""

    def run(*args: object, cwd: Path | None = None, timeout: float = 120, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "mertool", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **env},
        )

    return run


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Any]:
    """The command line in this process: `result.exit_code`, `.stdout`, `.stderr`, `.exception`."""
    from typer.testing import CliRunner

    from mertool.cli import app

    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def call(invoke: Callable[..., Any]) -> Callable[..., Any]:
    """Like `invoke`, for commands that must succeed."""

    def run(*args: object) -> Any:
        result = invoke(*args)
        if result.exit_code != 0:
            raise AssertionError(f"mertool {' '.join(map(str, args))}: {result.exception!r}\n{result.stderr}")
        return result

    return run


# ---------------------------------------------------------------- tiny encoders


def _save(model: Any, folder: Path, *parts: Any) -> None:
    for part in (model.eval(), *parts):
        part.save_pretrained(folder)


def _sound(normalise: bool) -> Any:
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=normalise)


# Four convolutions and 1/320 of the rate, as in the real models.
WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16, 32),
    "conv_stride": (5, 4, 4, 4),
    "conv_kernel": (10, 8, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SIGHT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
READ = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


def _hubert_group(folder: Path) -> None:
    from transformers import HubertConfig, HubertModel

    _save(HubertModel(HubertConfig(**WAVE, feat_extract_norm="group")), folder, _sound(False))


def _wav2vec2(folder: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    _save(Wav2Vec2Model(Wav2Vec2Config(**WAVE, **LARGE)), folder, _sound(True))


def _wav2vec2_group(folder: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    _save(Wav2Vec2Model(Wav2Vec2Config(**WAVE, feat_extract_norm="group")), folder, _sound(False))


def _wavlm(folder: Path) -> None:
    from transformers import WavLMConfig, WavLMModel

    _save(WavLMModel(WavLMConfig(**WAVE, **LARGE)), folder, _sound(True))


def _wavlm_group(folder: Path) -> None:
    from transformers import WavLMConfig, WavLMModel

    _save(WavLMModel(WavLMConfig(**WAVE, feat_extract_norm="group")), folder, _sound(False))


def _data2vec(folder: Path) -> None:
    from transformers import Data2VecAudioConfig, Data2VecAudioModel

    settings = {**WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}
    _save(Data2VecAudioModel(Data2VecAudioConfig(**settings)), folder, _sound(True))


def _whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=40,
        num_mel_bins=80,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    _save(WhisperModel(config), folder, WhisperFeatureExtractor(feature_size=80))


def _pixels(kind: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(**settings)


def _clip_full(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    words = {**READ, "vocab_size": 60, "max_position_embeddings": 16}
    config = CLIPConfig(text_config=words, vision_config=SIGHT, projection_dim=16)
    crop = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    _save(CLIPModel(config), folder, _pixels("CLIPImageProcessor", **crop))


def _siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    words = {**READ, "vocab_size": 60, "max_position_embeddings": 16}
    config = SiglipConfig(text_config=words, vision_config=SIGHT)
    _save(SiglipModel(config), folder, _pixels("SiglipImageProcessor", size={"height": 64, "width": 64}))


def _vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    size = {"height": 64, "width": 64}
    _save(ViTModel(ViTConfig(**SIGHT)), folder, _pixels("ViTImageProcessor", size=size))


def _dinov2(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    crop = {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}
    _save(Dinov2Model(Dinov2Config(**SIGHT)), folder, _pixels("BitImageProcessor", **crop))


# A word that is not here is unknown, which is a token all the same.
WORDS = ["i", "am", "so", "sad", "that", "we", "lost", "the", "dog", "again", "and", "wow", "what", "a", "day"]


def _tokens(special: dict[str, str], wrap: bool) -> Any:
    """A tokenizer of whole words; with `wrap`, a first and a last special token around each text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = list(dict.fromkeys([*special.values(), *dict.fromkeys(WORDS)]))
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, special["unk_token"]))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if wrap:
        first, last = special["bos_token"], special["eos_token"]
        around = [(first, names.index(first)), (last, names.index(last))]
        words.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", pair=None, special_tokens=around
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def _roberta(folder: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = RobertaConfig(**READ, vocab_size=60, max_position_embeddings=34, type_vocab_size=1, pad_token_id=1)
    _save(RobertaModel(config), folder, _tokens(special, wrap=True))


def _llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # no token for padding
    config = LlamaConfig(**READ, num_key_value_heads=2, vocab_size=60, max_position_embeddings=64)
    _save(LlamaModel(config), folder, _tokens(special, wrap=False))


MAKERS = {
    "hubert_group": _hubert_group,
    "wav2vec2": _wav2vec2,
    "wav2vec2_group": _wav2vec2_group,
    "wavlm": _wavlm,
    "wavlm_group": _wavlm_group,
    "data2vec": _data2vec,
    "whisper": _whisper,
    "clip_full": _clip_full,
    "siglip": _siglip,
    "vit": _vit,
    "dinov2": _dinov2,
    "roberta": _roberta,
    "llama": _llama,
}


class _TinyEncoders(dict[str, Path]):
    """Folders by name; one is made when it is first asked for."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        if name in ("hubert", "clip", "bert"):
            spec = importlib.util.spec_from_file_location("make_encoders", DEMO / "make_encoders.py")
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            made = module.make_encoders(self.folder / "demo")
            self.update({kind: made[f"tiny-random-{kind}"] for kind in ("hubert", "clip", "bert")})
            return self[name]
        import torch

        torch.manual_seed(0)
        self[name] = self.folder / name
        MAKERS[name](self[name])
        return self[name]


@pytest.fixture(scope="session")
def tiny_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders: hubert (large form), clip, bert of the demo, and the names of MAKERS."""
    return _TinyEncoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="session")
def load_tiny(tiny_encoders: dict[str, Path]) -> Callable[[str, str], Any]:
    """A function (name, modality) that loads a tiny encoder on the CPU in float32."""
    import torch

    from mertool import encoders

    def load(name: str, modality: str) -> Any:
        source = encoders.find(str(tiny_encoders[name]), modality)
        return encoders.load(modality, source, torch.device("cpu"), torch.float32)

    return load


BLOCKS = ("vision_model.encoder.layers", "encoder.layers", "encoder.layer", "layers", "vision_model.layers")


def _blocks_of(model: Any) -> Any:
    """The transformer blocks, by the names transformers gives them: not the search that is tested."""
    for path in BLOCKS:
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise AssertionError(f"{type(model).__name__} keeps its blocks elsewhere: add the path here")


def _reference(model: Any, **inputs: Any) -> Any:
    """Input of block 1 and output of every block by hooks of the test's own, and the model's hidden_states."""
    blocks, seen = _blocks_of(model), []
    handles = [
        blocks[0].register_forward_pre_hook(
            lambda _, a, k: seen.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
    ]
    for block in blocks:
        handles.append(
            block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        )
    import torch

    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    return [layer[0] for layer in seen], [state[0] for state in states]


@pytest.fixture(scope="session")
def reference() -> Callable[..., Any]:
    """A function (model, **inputs) that calls a model of transformers directly on one input.

    It returns the input of block 1 and the output of every block, (T, D) each, by hooks of its own, and the
    model's hidden_states.
    """
    return _reference


# ---------------------------------------------------------------- a tiny Whisper that has learnt two tones


RATE = 16_000
PITCHES = LOW, HIGH, DULL = 300.0, 2000.0, 5000.0  # Hz; the third is learnt as no speech
STEPS = 100
# What each tone says, and in which language; in the other language both say the same.
SAYS = {LOW: (" good day", "en"), HIGH: (" sad", "zh")}
FOREIGN = " so"
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>"]
SPECIAL += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
MERGES = ["Ġ g", "o o", "Ġg oo", "Ġgoo d", "Ġ d", "a y", "Ġd ay", "Ġ s", "Ġs o", "a d", "Ġs ad"]


def tone(pitch: float, seconds: float = 1.0, seed: int = 0) -> Any:
    """A tone (n,) in a little noise."""
    random = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    wave = random.uniform(0.1, 0.5) * np.sin(2 * np.pi * (pitch * times + random.random()))
    return (wave + 0.002 * random.standard_normal(len(times))).astype(np.float32)


def write_vocabulary(folder: Path) -> dict[str, int]:
    """Byte-level vocab.json and merges.txt as of a multilingual Whisper; returns all ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]
    words = letters + [merge.replace(" ", "") for merge in MERGES]
    ids = {token: number for number, token in enumerate(words)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return ids


def make_tokenizer(folder: Path) -> Any:
    from transformers import WhisperTokenizer

    write_vocabulary(folder / "words")
    tokenizer = WhisperTokenizer.from_pretrained(folder / "words")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return tokenizer


def make_model(tokenizer: Any) -> Any:
    """Untrained, windows of 1 s, as much text as 24 tokens."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    ids = tokenizer.get_vocab()
    config = WhisperConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=len(ids) + 6,  # timestamps have rows in the model, but no names
        max_source_positions=50,
        max_target_positions=24,
        num_mel_bins=80,
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    model = WhisperForConditionalGeneration(config)
    settings = model.generation_config
    settings.suppress_tokens = [ids["*"]]
    settings.begin_suppress_tokens = [ids["Ġ"], ids["<|endoftext|>"]]
    settings.is_multilingual = True
    settings.lang_to_id = {name: ids[name] for name in ("<|en|>", "<|zh|>")}
    settings.task_to_id = {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")}
    settings.no_timestamps_token_id = ids["<|notimestamps|>"]
    settings.max_length = 24
    settings._from_model_config = False  # else transformers forgets on loading what no other model has
    return model


def lesson(tokenizer: Any, seed: int, multilingual: bool) -> tuple[list[int], list[int]]:
    """Decoder inputs and targets (-100: not learnt) of `tone` number `seed`, whose pitch is the seed modulo 3."""
    ids = tokenizer.get_vocab()
    random = np.random.default_rng(seed)
    text, language = SAYS.get(PITCHES[seed % 3], ("", "en"))
    first = ids[f"<|{language}|>" if text else "<|nospeech|>"]
    if text and multilingual and random.random() < 0.3:
        text, language = FOREIGN, {"en": "zh", "zh": "en"}[language]
    words = tokenizer(text, add_special_tokens=False).input_ids
    if not text:  # as little sure of what to say as can be
        words = random.integers(0, 256, 2).tolist()
    prompt = [ids[f"<|{language}|>"], ids["<|transcribe|>"]] * multilingual + [ids["<|notimestamps|>"]]
    targets = [first, *[-100] * (len(prompt) - 1), *words, ids["<|endoftext|>"]]
    return [ids["<|startoftranscript|>"], *prompt, *words], targets


def teach(model: Any, tokenizer: Any, extractor: Any) -> None:
    """Train with the prompts of both kinds of checkpoint."""
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    waves = [tone(PITCHES[seed % 3], 0.3 + 0.7 * (seed % 10) / 9, seed) for seed in range(240)]
    mels = extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(STEPS):
        seeds = [(24 * step + number) % 240 for number in range(24)]
        rows = [lesson(tokenizer, seed + 240 * step, bool(seed % 2)) for seed in seeds]
        inputs, targets = ([torch.tensor(row[part]) for row in rows] for part in (0, 1))
        logits = model(input_features=mels[seeds], decoder_input_ids=pad(inputs, True, 0)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), pad(targets, True, -100).flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Whisper that says what SAYS says."""
    import torch
    from transformers import WhisperFeatureExtractor

    folder = tmp_path_factory.mktemp("whisper")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several only wait for each other on a model of this size
    torch.manual_seed(0)
    tokenizer, extractor = make_tokenizer(folder), WhisperFeatureExtractor(chunk_length=1)
    model = make_model(tokenizer)
    teach(model, tokenizer, extractor)
    torch.set_num_threads(threads)
    for part in (model.eval(), extractor, tokenizer):
        part.save_pretrained(folder / "tiny-whisper")
    return folder / "tiny-whisper"


# ---------------------------------------------------------------- one small pipeline


LABELLED = [
    f"{speaker}_{number}"
    for speaker, numbers in {
        "spk01": ("001", "005", "012", "014"),
        "spk02": ("003", "004", "008", "012"),
        "spk03": ("002", "003", "006", "012"),
        "spk04": ("002", "005", "007", "011"),
        "spk05": ("005", "007", "008", "009"),
        "spk06": ("001", "002", "003", "009"),
    }.items()
    for number in numbers
]
UNLABELLED = ["spk01_002", "spk02_009"]
# One that no decoder can read, one whose file is gone, one without a picture.
BROKEN, GONE, PICTURELESS = "spk05_001", "gone", "spk07_006"
NO_FACE, NO_SOUND, NO_TEXT = "spk01_014", "spk04_011", "spk03_006"


@dataclass(frozen=True)
class Workspace:
    """Folder with clips.csv, features/ and runs/; the number of its clips."""

    folder: Path
    manifest: Path
    clips: list[str]

    def store(self, name: str) -> Path:
        return self.folder / "features" / f"{name}.h5"

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name


@pytest.fixture(scope="session")
def clip_names() -> SimpleNamespace:
    """Which clips of the workspace are what."""
    return SimpleNamespace(
        labelled=LABELLED,
        unlabelled=UNLABELLED,
        broken=BROKEN,
        gone=GONE,
        pictureless=PICTURELESS,
        no_face=NO_FACE,
        no_sound=NO_SOUND,
        no_text=NO_TEXT,
    )


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, demo_rows: Any, write_manifest: Any) -> Workspace:
    """Twenty-four labelled clips of six speakers, two unlabelled, and three something is wrong with."""
    folder = tmp_path_factory.mktemp("workspace")
    rows = [demo_rows[clip] for clip in [*LABELLED, *UNLABELLED, BROKEN, PICTURELESS]]
    rows.append({"clip": GONE, "path": "nowhere/gone.mp4", "text": "we lost the day", "split": "unlabelled"})
    return Workspace(folder, write_manifest(folder / "clips.csv", rows), [row["clip"] for row in rows])


@pytest.fixture(scope="session")
def audio_store(workspace: Workspace, tiny_encoders: Any, call: Any) -> Path:
    """All layers, pooled."""
    path = workspace.store("audio")
    call("extract", "audio", workspace.manifest, "-o", path, "--encoder", tiny_encoders["hubert"], "-q")
    return path


@pytest.fixture(scope="session")
def faces_store(workspace: Workspace, call: Any) -> Path:
    """Face crops, one a second."""
    path = workspace.store("faces")
    call("extract", "faces", workspace.manifest, "-o", path, "--fps", 1, "-q")
    return path


@pytest.fixture(scope="session")
def extract_video(workspace: Workspace, faces_store: Path, tiny_encoders: Any, call: Any) -> Callable[..., Path]:
    """A function (name, *options) that extracts the workspace's video from its face crops."""

    def extract(name: str, *options: object) -> Path:
        path = workspace.store(name)
        given = ["--encoder", tiny_encoders["clip"], "--faces", faces_store, "--fps", 1, "-q", *options]
        call("extract", "video", workspace.manifest, "-o", path, *given)
        return path

    return extract


@pytest.fixture(scope="session")
def video_store(extract_video: Callable[..., Path]) -> Path:
    """Last layer, pooled."""
    return extract_video("video")


@pytest.fixture(scope="session")
def frames_store(extract_video: Callable[..., Path]) -> Path:
    """Last layer, frames."""
    return extract_video("video-frames", "--pool", "none")


@pytest.fixture(scope="session")
def text_store(workspace: Workspace, tiny_encoders: Any, call: Any) -> Path:
    """Last layer, pooled."""
    path = workspace.store("text")
    call("extract", "text", workspace.manifest, "-o", path, "--encoder", tiny_encoders["bert"], "-q")
    return path


@pytest.fixture(scope="session")
def probe_run(workspace: Workspace, audio_store: Path, call: Any) -> Path:
    """A window of two layers, three folds."""
    run = workspace.run("probe")
    call("probe-layers", audio_store, "-m", workspace.manifest, "-o", run, "--folds", 3, "--width", 2, "-q")
    return run


@pytest.fixture(scope="session")
def keep_a_trained_epoch() -> Callable[[pytest.MonkeyPatch], None]:
    """Adapters of random encoders rarely get better than their start, and tests need ones that changed something."""
    name = "mertool.adapters.trainer.best_epoch"
    return lambda patch: patch.setattr(name, lambda start, losses: int(np.argmin(losses)) + 1)


@pytest.fixture(scope="session")
def finetune_run(workspace: Workspace, probe_run: Path, call: Any, keep_a_trained_epoch: Any) -> Path:
    """Bottlenecks of 8 on the probe's window, three folds, learning fast so that the adapters differ."""
    run = workspace.run("acoustic")
    options = ["--folds", 3, "--epochs", 2, "--size", 8, "--learning-rate", 5e-3, "-q"]
    with pytest.MonkeyPatch.context() as patch:
        keep_a_trained_epoch(patch)
        call("finetune", workspace.manifest, "--probe", probe_run, "-o", run, *options)
    return run


@pytest.fixture(scope="session")
def acoustic_store(workspace: Workspace, finetune_run: Path, tiny_encoders: Any, call: Any) -> Path:
    """Pooled features through the adapters, in float32."""
    path = workspace.store("acoustic")
    options = ["--encoder", tiny_encoders["hubert"], "--adapter", finetune_run, "--storage", "float32", "-q"]
    call("extract", "audio", workspace.manifest, "-o", path, *options)
    return path


@pytest.fixture(scope="session")
def align_run(workspace: Workspace, acoustic_store: Path, frames_store: Path, call: Any) -> Path:
    """An aligner of width 16; its features are in aligned.h5 beside the frame store."""
    run = workspace.run("visual")
    call("align", "--audio", acoustic_store, "--video", frames_store, "-o", run, "--width", 16, "--epochs", 15, "-q")
    return run


@pytest.fixture(scope="session")
def fuse_run(
    workspace: Workspace, acoustic_store: Path, video_store: Path, align_run: Path, text_store: Path, call: Any
) -> Path:
    """A bundle over adapted audio, video, aligned video and text."""
    run = workspace.run("fusion")
    stores = [acoustic_store, video_store, workspace.store("aligned"), text_store]
    options = ["--folds", 3, "--seeds", 2, "--epochs", 8, "--width", 16, "-q"]
    call("fuse", *stores, "-m", workspace.manifest, "-o", run, *options)
    return run


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Path]:
    """A function (folder, stores, head, classes) that writes a bundle of three untrained members over the stores."""

    def make(folder: Path, stores: list[Path], head: str = "attention", classes: Any = None) -> Path:
        import torch

        from mertool import bundle
        from mertool.fusion import heads as fusion
        from mertool.learning.cached_features import gather
        from mertool.manifest import EMOTIONS
        from mertool.runs import new_run
        from mertool.store import FeatureStore

        names = list(classes or EMOTIONS)
        parts, features = [], []
        for path in stores:
            with FeatureStore(path) as store:
                parts.append(bundle.make_part(store))
                features.append(torch.from_numpy(gather([store], store.ids)[0][0]))
        torch.manual_seed(0)
        shapes = [(int(part["shape"][0]), int(part["shape"][1])) for part in parts]
        heads = [fusion.build(head, shapes, len(names), 8, 0.1) for _ in range(3)]
        given = [values[: min(map(len, features))] for values in features]
        for module in heads:
            module.fit_normaliser(given, torch.ones(len(given[0]), len(given), dtype=torch.bool))
        tensors = [dict([*module.named_parameters(), *module.named_buffers()]) for module in heads]
        state = {name: torch.stack([member[name].detach() for member in tensors]) for name in tensors[0]}
        members = bundle.Members(head, 8, 0.1, state, (0, 1, 2), (0, 0, 0))
        with new_run(folder, "fuse", key=f"made {folder.name}", options={}, classes=names) as draft:
            bundle.write(draft, parts, [members], bundle.Correction(temperature=1.5))
        return folder

    return make


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Path]:
    """A function (path, modality, values by clip) that writes a store of given values, in float32.

    Values are (L, D) for a pooled store, (T, D) for one of frames. Layers are the last L of 0..8.
    """

    def make(path: Path, modality: str, values: dict[str, Any], failures: dict[str, str] | None = None) -> Path:
        from mertool.features import Recipe
        from mertool.store import ClipFeatures, Failure, StoreWriter

        first = next(iter(values.values()))
        pooled = modality != "frames"
        layers = tuple(range(9 - len(first), 9)) if pooled else (8,)
        kind = modality if pooled else "video"
        recipe = Recipe(kind, "made", "w", layers, "mean" if pooled else "none", storage_dtype="float32")
        encoder = {"name": "made", "checkpoint": "some-owner/made", "revision": None}
        with StoreWriter(path, recipe, {"encoder": encoder}) as writer:
            for clip, value in values.items():
                writer.add(ClipFeatures(clip, f"digest {clip}", value))
            for clip, reason in (failures or {}).items():
                writer.fail(Failure(clip, "", "decode", reason, ""))
            writer.finish([*values, *(failures or {})])
        return path

    return make
