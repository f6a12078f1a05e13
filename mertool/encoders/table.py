"""The table of encoders: checkpoints with a short name, and the default of each modality. Nothing heavy is imported."""

from dataclasses import dataclass
from typing import Any

from mertool.encoders.families import known_families


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A row of the table.

    name: the short name.
    family: a file of mertool/encoders/families, which loads the checkpoint.
    checkpoint: the hub id.
    language: of the speech or the text that the encoder was trained on, "-" for images.
    parameters: their number, for people.
    layers: number of transformer blocks; `channels` is the width of each.
    revision: the commit of the hub that is loaded, where a checked one is known.
    """

    name: str
    family: str
    checkpoint: str
    language: str
    parameters: str
    layers: int
    channels: int
    revision: str | None = None

    @property
    def modality(self) -> str:
        """The modality of the family."""
        return known_families()[self.family].modality

    def to_json(self) -> dict[str, Any]:
        """Return the row with its modality."""
        return {**vars(self), "modality": self.modality}


# name, family, checkpoint, language, parameters, layers, channels
ROWS = (
    ("hubert-large-zh", "wav2vec2", "TencentGameMate/chinese-hubert-large", "Chinese", "317M", 24, 1024),
    ("hubert-base-zh", "wav2vec2", "TencentGameMate/chinese-hubert-base", "Chinese", "95M", 12, 768),
    ("wav2vec2-large-zh", "wav2vec2", "TencentGameMate/chinese-wav2vec2-large", "Chinese", "317M", 24, 1024),
    ("wav2vec2-base-zh", "wav2vec2", "TencentGameMate/chinese-wav2vec2-base", "Chinese", "95M", 12, 768),
    ("hubert-base", "wav2vec2", "facebook/hubert-base-ls960", "English", "95M", 12, 768),
    ("hubert-large", "wav2vec2", "facebook/hubert-large-ll60k", "English", "317M", 24, 1024),
    ("hubert-xlarge", "wav2vec2", "facebook/hubert-xlarge-ll60k", "English", "964M", 48, 1280),
    ("wav2vec2-base", "wav2vec2", "facebook/wav2vec2-base", "English", "95M", 12, 768),
    ("wav2vec2-large", "wav2vec2", "facebook/wav2vec2-large-lv60", "English", "317M", 24, 1024),
    ("wav2vec2-xlsr", "wav2vec2", "facebook/wav2vec2-large-xlsr-53", "53 languages", "317M", 24, 1024),
    ("wavlm-base-plus", "wav2vec2", "microsoft/wavlm-base-plus", "English", "95M", 12, 768),
    ("wavlm-large", "wav2vec2", "microsoft/wavlm-large", "English", "317M", 24, 1024),
    ("data2vec-audio-base", "wav2vec2", "facebook/data2vec-audio-base", "English", "93M", 12, 768),
    ("data2vec-audio-large", "wav2vec2", "facebook/data2vec-audio-large", "English", "313M", 24, 1024),
    ("whisper-tiny-en", "whisper", "openai/whisper-tiny.en", "English", "39M", 4, 384),
    ("whisper-base", "whisper", "openai/whisper-base", "multilingual", "74M", 6, 512),
    ("whisper-large-v3", "whisper", "openai/whisper-large-v3", "multilingual", "1.5B", 32, 1280),
    ("clip-vit-l14", "vision-transformer", "openai/clip-vit-large-patch14", "-", "304M", 24, 1024),
    ("clip-vit-b16", "vision-transformer", "openai/clip-vit-base-patch16", "-", "86M", 12, 768),
    ("clip-vit-b32", "vision-transformer", "openai/clip-vit-base-patch32", "-", "88M", 12, 768),
    ("siglip-b16", "vision-transformer", "google/siglip-base-patch16-224", "-", "93M", 12, 768),
    ("siglip-so400m", "vision-transformer", "google/siglip-so400m-patch14-384", "-", "428M", 27, 1152),
    ("dinov2-base", "vision-transformer", "facebook/dinov2-base", "-", "86M", 12, 768),
    ("dinov2-large", "vision-transformer", "facebook/dinov2-large", "-", "304M", 24, 1024),
    ("vit-base", "vision-transformer", "google/vit-base-patch16-224", "-", "86M", 12, 768),
    ("roberta-large-zh", "text-transformer", "hfl/chinese-roberta-wwm-ext-large", "Chinese", "326M", 24, 1024),
    ("roberta-base-zh", "text-transformer", "hfl/chinese-roberta-wwm-ext", "Chinese", "102M", 12, 768),
    ("macbert-large-zh", "text-transformer", "hfl/chinese-macbert-large", "Chinese", "326M", 24, 1024),
    ("minilm-l6", "text-transformer", "sentence-transformers/all-MiniLM-L6-v2", "English", "23M", 6, 384),
    ("bert-base", "text-transformer", "google-bert/bert-base-uncased", "English", "110M", 12, 768),
    ("roberta-large", "text-transformer", "FacebookAI/roberta-large", "English", "355M", 24, 1024),
    ("xlm-roberta-large", "text-transformer", "FacebookAI/xlm-roberta-large", "100 languages", "560M", 24, 1024),
    ("qwen2.5-7b", "text-transformer", "Qwen/Qwen2.5-7B", "Chinese, English", "7.6B", 28, 3584),
    ("qwen2.5-14b", "text-transformer", "Qwen/Qwen2.5-14B", "Chinese, English", "14.8B", 48, 5120),
    ("llama-3.1-8b", "text-transformer", "meta-llama/Llama-3.1-8B", "multilingual", "8.0B", 32, 4096),
)
REVISIONS = {
    "facebook/hubert-base-ls960": "dba3bb02fda4248b6e082697eee756de8fe8aa8a",
    "microsoft/wavlm-large": "c1423ed94bb01d80a3f5ce5bc39f6026a0f4828c",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    "google/vit-base-patch16-224": "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "FacebookAI/roberta-large": "722cf37b1afa9454edce342e7895e588b6ff1d59",
}
COLUMNS = ("name", "family", "checkpoint", "language", "parameters", "layers", "channels")
ENCODERS = tuple(
    EncoderSpec(**dict(zip(COLUMNS, row, strict=True)), revision=REVISIONS.get(row[2]))  # type: ignore[arg-type]
    for row in ROWS
)
DEFAULT_ENCODERS = {"audio": "hubert-large-zh", "video": "clip-vit-l14", "text": "roberta-large-zh"}


def encoder_names(modality: str) -> list[str]:
    """Return the short names of a modality."""
    return [spec.name for spec in ENCODERS if spec.modality == modality]
