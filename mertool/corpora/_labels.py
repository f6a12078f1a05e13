"""Labels of corpora as classes: those of the corpus itself, a scheme that `--classes` names, or the six of MER."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mertool.errors import MertoolError, count_of, suggest
from mertool.manifest import EMOTIONS

# The emotion of MER that other emotions count as with `--map-labels`. Fear is in the group of worry on wheels of
# emotions; disgust, contempt, boredom and frustration have no counterpart.
MER_CLASS_OF = {**{name: name for name in EMOTIONS}, "calm": "neutral", "excited": "happy", "fear": "worried"}


@dataclass(frozen=True)
class LabelScheme:
    """The classes of a corpus, and the mapping of its labels to them.

    Attributes:
        classes: In index order.
        class_of: The class by the corpus' own label; None for a label of no class.
    """

    classes: tuple[str, ...]
    class_of: Mapping[str, str | None]


def make_scheme(
    labels: Mapping[str, str], merge: Mapping[str, str], *, classes: tuple[str, ...], chosen: bool
) -> LabelScheme:
    """Return the scheme of `classes`.

    A label is the class of its own name; a name that is no class counts as the class that `merge` names. `chosen` says
    that a user named the classes: one that no label is of then raises MertoolError.

    >>> make_scheme({"hap": "happy", "exc": "excited"}, {"excited": "happy"}, classes=("happy",), chosen=True).class_of
    {'hap': 'happy', 'exc': 'happy'}
    """
    class_of = {
        label: next((c for c in (name, merge.get(name)) if c in classes), None) for label, name in labels.items()
    }
    empty = [name for name in classes if name not in class_of.values()]
    if chosen and empty:
        valid = [name for name in dict.fromkeys(labels.values()) if name]
        raise MertoolError(
            f"--classes: no label is of the class '{empty[0]}': {suggest(empty[0], valid)}valid: {', '.join(valid)}"
        )
    return LabelScheme(classes, class_of)


def check_labels(labels: Iterable[str], known: Mapping[str, str], title: str) -> None:
    """Raise MertoolError for labels that the corpus' label map lacks."""
    unknown = Counter(label for label in labels if label not in known)
    if unknown:
        names = ", ".join(f"'{label}' ({count_of(count, 'clip')})" for label, count in unknown.most_common(5))
        raise MertoolError(
            f"labels that the label map of {title} lacks: {names}: is it another release? It has {', '.join(known)}"
        )


def describe_other(names: Iterable[str], *, kept: bool) -> str:
    """Return a sentence about clips whose label is of no class, by the names of their labels."""
    counts = Counter(names)
    listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
    fate = "kept for their numbers" if kept else "left out"
    return f"{count_of(counts.total(), 'clip')} whose label is of no class {fate}: {listed}"
