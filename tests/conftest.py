"""Fixtures that all tests share: the demo clips, the command line, a tiny Whisper. More are in `fixtures/`.

Everything is offline and of random weights.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
os.environ.setdefault("MPLBACKEND", "Agg")

pytest_plugins = ["fixtures.encoders", "fixtures.pipeline"]

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
