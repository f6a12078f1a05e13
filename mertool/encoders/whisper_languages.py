"""The languages that Whisper transcribes."""

from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from mertool.encoders.checkpoint_files import read_json
from mertool.encoders.checkpoints import CheckpointRef
from mertool.errors import MertoolError, suggest

MULTILINGUAL_SIZE = 51_865  # vocabularies of multilingual checkpoints have at least so many tokens


def parse_language(name: str) -> str:
    """Return the code of a language given by its code or its English name; raise MertoolError for another.

    >>> parse_language("Chinese"), parse_language("zh")
    ('zh', 'zh')
    """
    code = name.strip("<|> ").lower()
    code = TO_LANGUAGE_CODE.get(code, code)
    if code in LANGUAGES:
        return code
    raise MertoolError(
        f"unknown language '{name}' (--language): {suggest(name, [*TO_LANGUAGE_CODE, *LANGUAGES])}valid: the English "
        f"name or the code: {', '.join(LANGUAGES)}"
    )


def check_language(name: str, checkpoint: CheckpointRef) -> str:
    """Return the code of a language that a Whisper transcribes; raise MertoolError for an English-only Whisper."""
    code = parse_language(name)
    if code != "en" and not _is_multilingual(checkpoint):
        raise MertoolError(
            f"--language {name}: {checkpoint.name} transcribes English only: give a multilingual Whisper, such as "
            "whisper-large-v3"
        )
    return code


def _is_multilingual(checkpoint: CheckpointRef) -> bool:
    file = checkpoint.folder / "generation_config.json"
    multilingual = read_json(file).get("is_multilingual") if file.is_file() else None
    if multilingual is None:
        size = checkpoint.config().get("vocab_size")
        return not isinstance(size, int) or size >= MULTILINGUAL_SIZE
    return bool(multilingual)
