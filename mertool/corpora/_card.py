"""`CorpusCard`: what a file of this package says of its corpus, read without importing it."""

from dataclasses import dataclass, field, fields

from mertool import registry
from mertool.corpora._labels import MER_CLASS_OF

PACKAGE = "corpora"
KIND = "corpus"


@dataclass(frozen=True, kw_only=True)
class CorpusCard:
    """The constants of a corpus' file, in lower case.

    Attributes:
        name: On the command line.
        title: In full.
        language: That is spoken.
        modalities: Of its clips: audio, video, text.
        clips: How many there are when all is unpacked; None where that depends on the release.
        speakers: How many there are, in words where it is not known exactly.
        layout: Some of its files, as they lie in the folder that is given to `mertool manifest`.
        labels: Name of the emotion by the corpus' own label.
        classes: The names that are the classes by default, the field's standard scheme.
        merge: The class of other names, such as excited: happy.
        to_mer: The emotion of MER of names that `MER_CLASS_OF` lacks.
        target: `emotion`, or `sentiment`, which has no classes of MER.
        protocol: The standard folds or splits, which the manifest comes with.
        source: Where the corpus is to be had.
        licence: Terms of use, as the source states them.
    """

    name: str
    title: str
    language: str
    modalities: str
    clips: int | None
    speakers: str
    layout: str
    labels: dict[str, str]
    classes: tuple[str, ...]
    protocol: str
    source: str
    licence: str
    merge: dict[str, str] = field(default_factory=dict)
    to_mer: dict[str, str] = field(default_factory=dict)
    target: str = "emotion"

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of all its labels, each once."""
        return tuple(dict.fromkeys(self.labels.values()))

    @property
    def mer_classes(self) -> dict[str, str]:
        """The emotion of MER by the name of the label; names that are none of MER's are left out."""
        if self.target != "emotion":
            return {}
        known = {**MER_CLASS_OF, **self.to_mer}
        return {name: known[name] for name in self.label_names if name in known}


def corpus_names() -> list[str]:
    """Return the names of all corpora."""
    return registry.choices(PACKAGE)


def corpus_card(name: str) -> CorpusCard:
    """Return what is known of a corpus; raises MertoolError with the valid names for an unknown one."""
    registry.check(PACKAGE, KIND, name)
    constants = {key.lower(): value for key, value in registry.literals(PACKAGE, name).items()}
    known = {declared.name for declared in fields(CorpusCard)}
    return CorpusCard(name=name, **{key: value for key, value in constants.items() if key in known - {"name"}})
