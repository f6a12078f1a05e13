"""`SpeechRecognition`: a Whisper and the settings that change its transcripts. It imports no torch."""

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from mertool.encoders.checkpoints import CheckpointRef, resolve_recogniser
from mertool.encoders.chinese import CONVERSIONS
from mertool.errors import MertoolError, MertoolWarning
from mertool.files import content_digest, digest_json

RULES_VERSION = 1  # raised whenever a transcript of the same model and settings changes
VAD_WEIGHTS = "silero_vad/data/silero_vad_16k.safetensors"
INSTALL = "pip install 'mertool[asr]'"
# Keys of a recipe's media settings.
RECOGNISER, SETTINGS = "asr", "recognition"


@dataclass(frozen=True, kw_only=True)
class RecognitionSettings:
    """Settings that change a transcript.

    language: the code of the spoken language (`zh`); None: detected by the Whisper.
    chinese: `simplified` or `traditional`, to which Chinese text is converted; None: as the Whisper writes it.
    vad: digest of the weights for voice activity detection; None: without.
    version: of the rules (see RULES_VERSION).
    """

    language: str | None = None
    chinese: str | None = None
    vad: str | None = None
    version: int = RULES_VERSION

    @classmethod
    def from_json(cls, value: Any) -> "RecognitionSettings":
        """Return the settings of a recipe; raise ValueError for anything else."""
        try:
            settings = cls(**value)
        except TypeError as error:
            raise ValueError(f"the settings of speech recognition are not valid: {error}") from error
        texts = (settings.language, settings.chinese, settings.vad)
        valid = all(isinstance(text, str | None) for text in texts) and type(settings.version) is int
        if not valid or settings.chinese not in (None, *CONVERSIONS):
            raise ValueError("the settings of speech recognition are not valid")
        return settings

    def check_available(self, what: str) -> None:
        """Raise MertoolError if what the settings need is not installed here; `what` was made with them."""
        if self.version != RULES_VERSION:
            raise MertoolError(
                f"{what}: the transcripts were made by other rules of mertool (version {self.version} there, "
                f"{RULES_VERSION} here): extract the text again, and fuse"
            )
        if self.vad and self.vad != (here := vad_digest()):
            state = f"other weights ({here[:12]} here, {self.vad[:12]} there)" if here else "not installed"
            raise MertoolError(
                f"{what}: the transcripts were made with voice activity detection by silero-vad, which is here "
                f"{state}: {INSTALL}, or the version of silero-vad that was used"
            )
        check_chinese(self.chinese)


@dataclass(frozen=True, kw_only=True)
class SpeechRecognition:
    """A Whisper and the settings of its transcripts."""

    checkpoint: CheckpointRef
    settings: RecognitionSettings

    def to_media(self) -> dict[str, Any]:
        """Return the entries of a recipe's media settings."""
        return {RECOGNISER: self.checkpoint.digest(), SETTINGS: asdict(self.settings)}

    @property
    def id(self) -> str:
        """The name of model and settings in tables of transcripts."""
        name = recognition_id(self.to_media())
        assert name is not None
        return name


def recognition_id(media: Mapping[str, Any]) -> str | None:
    """Return `SpeechRecognition.id` for the media settings of a recipe; None for given transcripts."""
    if RECOGNISER not in media:
        return None
    return digest_json({key: media.get(key) for key in (RECOGNISER, SETTINGS)})[:16]


def resolve_recognition(
    name: str, *, language: str | None = None, chinese: str | None = None, vad: bool = True
) -> SpeechRecognition:
    """Find a Whisper by table name, local folder or hub id; voice activity detection is used if it is installed.

    Raises MertoolError for a Whisper that is not found, for a language that it does not transcribe, and if OpenCC is
    needed and not installed.
    """
    check_chinese(chinese)
    checkpoint = resolve_recogniser(name)
    code = None
    if language:
        from mertool.encoders.whisper_languages import check_language

        code = check_language(language, checkpoint)
    settings = RecognitionSettings(language=code, chinese=chinese, vad=vad_digest() if vad else None)
    return SpeechRecognition(checkpoint=checkpoint, settings=settings)


def find_vad_weights() -> Path | None:
    """Return the weights in the installed silero-vad; None if it is not installed, or too old to have them."""
    try:
        file = Path(str(distribution("silero-vad").locate_file(VAD_WEIGHTS)))
    except PackageNotFoundError:
        return None
    return file if file.is_file() else None


def vad_digest() -> str | None:
    """Return the digest of the weights of silero-vad; None if it is not installed."""
    weights = find_vad_weights()
    return content_digest([weights]) if weights else None


def warn_without_vad() -> None:
    """Issue a MertoolWarning that voice activity detection is not installed."""
    warnings.warn(
        "voice activity detection is not installed, so noise may be transcribed as words: "
        f"{INSTALL}, or give --no-vad to leave it out",
        MertoolWarning,
        stacklevel=2,
    )


def check_chinese(script: str | None) -> None:
    """Raise MertoolError if Chinese is to be converted and OpenCC is not installed."""
    if script and importlib.util.find_spec("opencc") is None:
        raise MertoolError(f"--chinese {script} needs OpenCC, which is not installed: {INSTALL}")
