"""Writing a bundle: trained parts and small encoders are copied into it, the others named by digest."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from mertool.adapters import methods as peft_methods
from mertool.bundle.feature_spec import FeatureSpec, check_provenance, copied_encoders
from mertool.bundle.layout import encoder_files, encoder_folder, file_digest, manifest_digest, trained_folder
from mertool.files import explain_write_errors, write_atomic
from mertool.fusion.calibration import Correction
from mertool.fusion.ensemble_weights import EnsembleWeights
from mertool.runs import Run, RunDraft


def write(
    draft: RunDraft, specs: Sequence[FeatureSpec], *, groups: Sequence[EnsembleWeights], correction: Correction
) -> None:
    """Make the draft of a run a bundle, and seal all its files.

    So it comes last: the plots, the metrics, and the classes and their counts in the draft's info must be complete.
    """
    check_provenance(specs)
    members = []
    for number, group in enumerate(groups):
        draft.save_tensors(f"members-{number}", group.state)
        sizes = {"head": group.head, "width": group.width, "dropout": group.dropout}
        file = f"members-{number}.safetensors"
        members.append({"file": file, **sizes, "fold": list(group.fold), "seed": list(group.seed)})
    for number, spec in enumerate(specs):
        _copy_trained(spec, draft.folder, number)
    draft.info.update(parts=[spec.to_json() for spec in specs], members=members, correction=correction.to_json())
    draft.write_metrics()
    draft.info["files"] = {
        file.relative_to(draft.folder).as_posix(): file_digest(file)
        for file in sorted(draft.folder.rglob("*"))
        if file.is_file()
    }
    draft.info["seal"] = manifest_digest(draft.info)


def _copy_trained(spec: FeatureSpec, bundle: Path, number: int) -> None:
    """Copy the adapter, the aligner and the small encoders that a spec names."""
    folder = bundle / trained_folder(number)
    with explain_write_errors(folder):
        if spec.recipe.adapter:
            final = Path(spec.provenance["adapter"]) / "adapters" / peft_methods.FINAL
            files = [final / "adapter_config.json", *final.glob("*.safetensors")]
            _copy_files(files, folder / "adapters" / final.name)
        if spec.recipe.aligner:
            run = Path(spec.provenance["aligner"])
            _copy_files(sorted(run.glob("*.safetensors")), folder / "aligner")
            # Only the final aligner is copied: the others are for clips of the training.
            info = {**Run.read(run, "align").info, "aligner_of_clip": {}}
            write_atomic(folder / "aligner" / "run.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
        for _, checkpoint, digest in copied_encoders(spec):
            copy = bundle / encoder_folder(digest)
            if not copy.exists():  # specs may share an encoder
                _copy_files(encoder_files(checkpoint), copy)


def _copy_files(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
