"""Options that several stages have."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS, NUMBERS, parse_classes
from mertool.options.option import option

EMOTION = "emotion"
TARGETS = {EMOTION: "classes", **dict.fromkeys(NUMBERS, "a number")}
MAX_FOLDS = 1000  # each is a training of its own; corpora have fewer speakers
TRAINING = "Training"  # heading of the help
DEVICES = ("auto", "cpu", "cuda", "mps")
CHINESE_SCRIPTS = ("simplified", "traditional")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def parse_device(name: str) -> tuple[str, int | None]:
    """Return the kind of a device and its number, if it has one; raises MertoolError for another name.

    >>> parse_device("cuda:1")
    ('cuda', 1)
    """
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and (kind in ("auto", "mps") or not number.isdecimal())):
        raise MertoolError(f"unknown device '{name}': valid: auto, cpu, cuda, cuda:N, mps")
    return kind, int(number) if number else None


def device() -> Any:
    return option("auto", help="Device to compute on: auto, cpu, cuda, cuda:N or mps.", affects_result=False)


def dtype(only_for: tuple[str, ...] = ()) -> Any:
    return option("auto", help="Number format of the encoder.", choices=DTYPES, only_for=only_for)


def workers() -> Any:
    return option(
        None, help="Decoder processes.", minimum=1, default_help="the number of cores, at most 8", affects_result=False
    )


def clip_timeout() -> Any:
    return option(
        120.0,
        help="Time after which the decoding of a clip is stopped.",
        above=0,
        unit="seconds",
        affects_result=False,
    )


def language(only_for: tuple[str, ...] = ()) -> Any:
    return option(
        None,
        help="With --asr: the spoken language, as en or chinese.",
        default_help="detected by the Whisper",
        only_for=only_for,
    )


def chinese(only_for: tuple[str, ...] = ()) -> Any:
    return option(
        None,
        help="With --asr: characters of recognised Chinese, which is converted by OpenCC.",
        choices=CHINESE_SCRIPTS,
        default_help="those that the Whisper writes",
        only_for=only_for,
    )


def vad(only_for: tuple[str, ...] = ()) -> Any:
    return option(
        True,
        help="With --asr: transcribe only where silero-vad hears speech, if it is installed.",
        only_for=only_for,
    )


def recognition_conflicts(asr: str | None, *, language: str | None, chinese: str | None, vad: bool) -> Iterator[str]:
    """Messages about settings of speech recognition without it."""
    given = {"--language": language, "--chinese": chinese, "--no-vad": not vad}
    if not asr:
        yield from (f"{flag} belongs to --asr: give a Whisper, too" for flag, value in given.items() if value)


def seed() -> Any:
    return option(0, help="Seed of all random numbers.")


def patience(default: int) -> Any:
    return option(
        default,
        help="Epochs without a better development loss before training stops.",
        minimum=1,
        group=TRAINING,
    )


def learning_rate(default: float | None, subject: str = "", default_help: str | None = None) -> Any:
    return option(
        default, help=f"Peak learning rate{subject}.", above=0, below=1, default_help=default_help, group=TRAINING
    )


def overwrite() -> Any:
    return option(
        False, help="Compute again and replace an existing result, whatever its options.", affects_result=False
    )


def classes() -> Any:
    return option(
        EMOTIONS,
        help="Class names in index order, comma-separated.",
        metavar="NAMES",
        parse=parse_classes,
        validate=check_classes,
    )


def target(default: str | None = EMOTION, default_help: str | None = None) -> Any:
    return option(
        default,
        help="Label that is predicted, the column label of the manifest or one of numbers.",
        choices=TARGETS,
        default_help=default_help,
    )


def target_conflicts(target: str | None, classes: tuple[str, ...] | None, given: dict[str, bool]) -> Iterator[str]:
    """Messages about options that are for classes, where the target is a number; `given` says which flags are."""
    if target in NUMBERS:
        for flag in [
            *(["--classes"] if classes not in (None, EMOTIONS) else []),
            *(f for f, is_on in given.items() if is_on),
        ]:
            yield f"{flag} is for classes: leave it out with --target {target}, which is a number"


def folds(default: int | None = 5, default_help: str | None = None) -> Any:
    return option(
        default,
        help="CSV file of folds, or number of folds of the cross-validation, by speaker where all speakers are known.",
        metavar="NUMBER|FILE",
        minimum=2,
        maximum=MAX_FOLDS,
        parse=parse_folds,
        default_help=default_help,
    )


def parse_folds(text: str) -> int | Path:
    """A number of folds, or the path of a file of folds. Raises MertoolError for a number that cannot be one."""
    if re.fullmatch(r"[+-]?\d{1,9}", text):
        return int(text)
    if re.fullmatch(r"[+-]*\.?\d[\d.,_]*(e[+-]?\d+)?|[+-]?(inf|nan)|true|false|none", text, re.IGNORECASE):
        raise MertoolError(f"--folds {text[:20]}: give a whole number from 2 to {MAX_FOLDS}, or a file")
    return Path(text)


def split_names(text: str) -> tuple[str, ...]:
    """Names from `a, b,c`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check_classes(names: tuple[str, ...]) -> None:
    """Raise MertoolError unless there are two different names or more."""
    parse_classes(",".join(names))
