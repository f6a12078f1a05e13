"""`Bundle`: checking a bundle's files, finding its encoders, scoring features."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mertool.bundle.feature_spec import FeatureSpec
from mertool.bundle.integrity import find_file_faults
from mertool.bundle.layout import encoder_folder, manifest_digest, trained_folder
from mertool.bundle.members import Heads, load_heads
from mertool.encoders import CheckpointRef, SpeechRecognition, resolve_encoder
from mertool.errors import MertoolError, combine_errors
from mertool.features import IMPORTED, Recipe
from mertool.fusion.calibration import Correction, apply_correction
from mertool.fusion.ensemble import ensemble_logits
from mertool.fusion.modality_features import ModalityFeatures
from mertool.manifest import NUMBERS
from mertool.runs import Run
from mertool.targets import EMOTION, Classes, Number, Target

CPU = torch.device("cpu")
NEEDS = ("parts", "members", "correction", "classes", "class_counts", "files", "seal")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all unchanged since they were written.

    run: its folder and the content of run.json.
    feature_specs: the features that it takes, one per store that it was trained on.
    target: what it predicts, one of C classes or a number.
    correction: temperature and priors.
    majority_class: the most frequent class of the training clips; of several the first. None for a number.
    """

    run: Run
    feature_specs: tuple[FeatureSpec, ...]
    target: Target
    correction: Correction
    majority_class: str | None
    _on_device: dict[torch.device, Heads] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Open a run of `fuse`, which may come from anybody.

        Raises one MertoolError that names every file that is missing, changed or does not belong into the bundle, and
        MertoolError for members that do not fit, or a run.json that `write` would not write.
        """
        run = Run.read(folder, "fuse", *NEEDS)
        try:
            specs = tuple(FeatureSpec.from_json(spec) for spec in run.info["parts"])
            encoder_digests = [digest for spec in specs for digest in spec.encoder_digests]
            faults = find_file_faults(folder, run.info["files"], encoder_digests)
            if manifest_digest(run.info) != run.info["seal"]:
                faults.append("run.json was changed (classes, recipes, members, correction or digests)")
            if faults:
                raise combine_errors(
                    f"{folder} is not as `mertool fuse` wrote it: copy it again, or fuse again", faults
                )
            target = _read_target(run.info)
            classes = target.classes
            majority_class = _read_majority_class(run.info["class_counts"], classes) if classes else None
            correction = Correction.from_json(run.info["correction"])
            if correction.train_prior and len(correction.train_prior) != len(classes):
                raise ValueError(f"priors of {len(correction.train_prior)} classes, not {len(classes)}")
            _check_distinct([spec.name for spec in specs])
            heads = load_heads(run, shapes=[spec.shape for spec in specs], n_classes=target.n_outputs)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise MertoolError(f"{folder / 'run.json'} is no bundle's ({error!r}): run `mertool fuse` again") from error
        return cls(
            run=run,
            feature_specs=specs,
            target=target,
            correction=correction,
            majority_class=majority_class,
            _on_device={CPU: heads},
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty for a number."""
        return self.target.classes

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(L, D) of a clip's features, for each spec."""
        return [spec.shape for spec in self.feature_specs]

    # ------------------------------------------------------------ scoring

    def ensemble_logits(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Logits (M, N, C) of all members; features one (N, L, D) per spec, present (N, specs), on one device."""
        heads = self._heads(present.device)
        clips = ModalityFeatures(features, present)
        return torch.cat([ensemble_logits(head, state, clips) for head, state in heads])

    def logits(self, features: list[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Mean (N, C) of the members' logits, as in the official protocol, before any correction."""
        return self.ensemble_logits(features, present).mean(0)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, C), float64 on the CPU, of `logits`: with the bundle's temperature and priors."""
        return torch.from_numpy(apply_correction(logits.detach().cpu().double().numpy(), self.correction))

    def outputs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what is written of each clip, float64 on the CPU: probabilities (N, C), or the number (N, 1)."""
        return self.probabilities(logits) if self.classes else logits.detach().cpu().double()

    def _heads(self, device: torch.device) -> Heads:
        if device not in self._on_device:
            self._on_device[device] = [
                (copy.deepcopy(head).to(device), {name: value.to(device) for name, value in state.items()})
                for head, state in self._on_device[CPU]
            ]
        return self._on_device[device]

    # ------------------------------------------------------------ the chain before the heads

    def adapters_of(self, spec: FeatureSpec) -> Path | None:
        """The folder of the adapter, which is always `final`; None for features without an adapter."""
        return self._folder_of(spec) / "adapters" if spec.recipe.adapter else None

    def aligner_of(self, spec: FeatureSpec) -> Path | None:
        """The folder of the aligner; None for features without one."""
        return self._folder_of(spec) / "aligner" if spec.recipe.aligner else None

    def recipe_of(self, spec: FeatureSpec) -> Recipe:
        """The recipe of features of new clips, which get the adapter trained on all folds, whatever their ids."""
        digest = spec.recipe.adapter
        return replace(spec.recipe, adapter=f"{digest}:final" if digest else None)

    def encoder_of(self, spec: FeatureSpec) -> CheckpointRef:
        """Find the encoder: in the bundle, by hub id and revision, or in a local folder; check its digest."""
        if IMPORTED in spec.recipe.media:
            raise MertoolError(
                f"features '{spec.name}' of {self.run.folder} were imported from {spec.recipe.media[IMPORTED]}, which "
                "does not say how they were made: fuse predicts the clips of the split test from such features; for "
                "raw clips, fuse features that `mertool extract` made"
            )
        return self._find(spec, "encoder", digest=spec.recipe.weights, modality=spec.modality)

    def recognition_of(self, spec: FeatureSpec) -> SpeechRecognition:
        """Find the speech recogniser that made the transcripts, as `encoder_of` does, and check its settings."""
        features = f"features '{spec.name}' of {self.run.folder}"
        if spec.recognition is None:
            raise MertoolError(
                f"{features} were transcribed by a mertool without voice activity detection: extract the text again, "
                "and fuse"
            )
        spec.recognition.check_available(features)
        checkpoint = self._find(spec, "asr", digest=spec.recipe.media["asr"], modality="audio")
        return SpeechRecognition(checkpoint=checkpoint, settings=spec.recognition)

    def _folder_of(self, spec: FeatureSpec) -> Path:
        return self.run.folder / trained_folder(self.feature_specs.index(spec))

    def _find(self, spec: FeatureSpec, kind: str, *, digest: str, modality: str) -> CheckpointRef:
        origin, copy = spec.provenance.get(kind), self.run.folder / encoder_folder(digest)
        if not origin:
            raise MertoolError(
                f"features '{spec.name}' of {self.run.folder} were made elsewhere, their {kind} is not known: "
                "fuse features that `mertool extract` made"
            )
        checkpoint = origin["checkpoint"]
        if copy.is_dir():
            ref = CheckpointRef(name=origin["name"], folder=copy, checkpoint=checkpoint, revision=origin["revision"])
        elif Path(checkpoint).is_absolute() and not Path(checkpoint).is_dir():
            raise MertoolError(
                f"encoder '{origin['name']}' of features '{spec.name}' is neither in {self.run.folder} nor in "
                f"{checkpoint}: copy its model folder (weights {digest}) to {copy}"
            )
        else:
            ref = resolve_encoder(checkpoint, modality, origin["revision"])
        if (actual := ref.digest()) != digest:
            raise MertoolError(
                f"encoder '{origin['name']}' in {ref.folder} is not the one of {self.run.folder} (weights "
                f"{digest[:12]} there, {actual[:12]} here): copy the right model folder to {copy}"
            )
        return ref


def _read_target(info: dict[str, Any]) -> Target:
    """Return the target; raise ValueError or TypeError for one that is not known, or has classes though a number."""
    name = info.get("target", EMOTION)
    if name == EMOTION:
        return Classes(_read_classes(info["classes"]))
    if name not in NUMBERS or info["classes"] or info["class_counts"]:
        raise ValueError(f"the target {str(name)[:80]!r}")
    return Number(name)


def _read_majority_class(counts: Any, classes: tuple[str, ...]) -> str:
    """Return the class with the most training clips; raise ValueError or TypeError for counts of other classes."""
    if not isinstance(counts, dict) or set(counts) != set(classes):
        raise ValueError("the counts of training clips are not of the classes")
    if not all(isinstance(count, int) for count in counts.values()):
        raise TypeError("the counts of training clips are not whole numbers")
    return max(classes, key=lambda name: counts[name])


def _read_classes(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise TypeError("the classes are not a list of names")
    _check_distinct(names)
    if len(names) < 2:
        raise ValueError("fewer than two classes")
    return tuple(names)


def _check_distinct(names: Sequence[str]) -> None:
    """Raise ValueError if two names differ at most by capitals, which some file systems take for one."""
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError(f"a name is repeated among {', '.join(names)}")
