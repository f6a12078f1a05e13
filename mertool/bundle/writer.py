"""Writing a bundle: trained parts and small encoders are copied into it, the others named by digest."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from mertool.adapters import methods as peft_methods
from mertool.bundle.layout import encoder_files, encoder_folder, file_digest, manifest_digest, part_folder
from mertool.bundle.parts import BundlePart, check_parts, copied_encoders
from mertool.files import explain_write_errors
from mertool.fusion.calibration import Correction
from mertool.fusion.cross_validation import Members
from mertool.runs import RunDraft


def write(draft: RunDraft, parts: Sequence[BundlePart], groups: Sequence[Members], correction: Correction) -> None:
    """Make the draft of a run a bundle; the names of the classes must be in its info already."""
    check_parts(parts)
    members = []
    for number, group in enumerate(groups):
        draft.save_tensors(f"members-{number}", group.state)
        sizes = {"head": group.head, "width": group.width, "dropout": group.dropout}
        file = f"members-{number}.safetensors"
        members.append({"file": file, **sizes, "fold": list(group.fold), "seed": list(group.seed)})
    for number, part in enumerate(parts):
        _copy_part(part, draft.folder, number)
    draft.info.update(parts=[part.to_json() for part in parts], members=members, correction=correction.to_json())
    draft.info["files"] = {
        file.relative_to(draft.folder).as_posix(): file_digest(file)
        for pattern in ("members-*.safetensors", "encoders/**/*", "part*/**/*")
        for file in sorted(draft.folder.glob(pattern))
        if file.is_file()
    }
    draft.info["seal"] = manifest_digest(draft.info)


def _copy_part(part: BundlePart, bundle: Path, number: int) -> None:
    """Copy the adapter, the aligner and the small encoders of a part."""
    folder = bundle / part_folder(number)
    with explain_write_errors(folder):
        if part.recipe.adapter:
            final = Path(part.provenance["adapter"]) / "adapters" / peft_methods.FINAL
            files = [final / "adapter_config.json", *final.glob("*.safetensors")]
            _copy_files(files, folder / "adapters" / final.name)
        if part.recipe.aligner:
            run = Path(part.provenance["aligner"])
            _copy_files([run / "run.json", *run.glob("*.safetensors")], folder / "aligner")
        for _, checkpoint, digest in copied_encoders(part):
            copy = bundle / encoder_folder(digest)
            if not copy.exists():  # parts may share it
                _copy_files(encoder_files(checkpoint), copy)


def _copy_files(files: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
