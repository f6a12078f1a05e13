"""Writing a manifest as a folder that Hugging Face `datasets` loads: a folder per split, each with its metadata.

Source: `folder_based_builder.py` of https://github.com/huggingface/datasets. All tables of a data set must have the
same columns of the same types, so every column is there in every split, and an unknown value is an empty text.
"""

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

from mertool.errors import MertoolError, combine_errors, count_of
from mertool.files import explain_write_errors, make_folder, write_atomic
from mertool.interop.parquet import write_parquet
from mertool.manifest import Clip, Manifest

# Folder of each split, which datasets takes for its name.
SPLIT_FOLDERS = {None: "train", "train": "train", "dev": "validation", "test": "test", "unlabelled": "unlabelled"}
FIELDS = ("label", "text", "speaker", "gender")
README = "README.md"
KINDS = ("jsonl", "parquet")


def export_manifest(manifest: Manifest, folder: Path, *, kind: str = "jsonl") -> dict[str, int]:
    """Write the clips of a manifest into a new folder; return the number of clips by split.

    `kind` is one of KINDS. Media are hard links where the file system allows it, else copies. Raises one MertoolError
    for all clips without a media file, and for clips that are parts of files.
    """
    if folder.exists():
        raise MertoolError(f"{folder} exists: give another -o, or remove it")
    if faults := list(filter(None, map(_fault_of, manifest.clips))):
        raise combine_errors(f"{manifest.source} cannot be exported", faults)
    clips_of: defaultdict[str, list[Clip]] = defaultdict(list)
    for clip in manifest.clips:
        clips_of[SPLIT_FOLDERS[clip.split]].append(clip)
    for split, clips in clips_of.items():
        make_folder(folder / split)
        with explain_write_errors(folder / split):
            rows = [
                {"file_name": _place_media(clip, folder / split), "clip": clip.clip, **_facts(clip)} for clip in clips
            ]
        _write_metadata(folder / split, rows, kind)
    write_atomic(folder / README, _readme(list(clips_of)))
    return {split: len(clips) for split, clips in clips_of.items()}


def _fault_of(clip: Clip) -> str | None:
    if clip.start is not None or clip.end is not None:
        return f"'{clip.clip}' is a part of a file: cut it into a file of its own"
    media = clip.path or clip.audio
    if media is None:
        return f"'{clip.clip}' has no media file"
    return None if media.is_file() else f"{media} of '{clip.clip}' does not exist"


def _place_media(clip: Clip, folder: Path) -> str:
    """Put the media of a clip into a folder, and return its name there."""
    media = clip.path or clip.audio
    assert media is not None
    name = f"{clip.clip}{media.suffix.lower()}"
    try:
        os.link(media.resolve(), folder / name)
    except OSError:
        shutil.copyfile(media, folder / name)
    return name


def _facts(clip: Clip) -> dict[str, str]:
    return {name: getattr(clip, name) or "" for name in FIELDS}


def _write_metadata(folder: Path, rows: list[dict[str, str]], kind: str) -> None:
    if kind == "parquet":
        write_parquet(folder / "metadata.parquet", {name: [row[name] for row in rows] for name in rows[0]})
        return
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomic(folder / "metadata.jsonl", "".join(lines))


def _readme(splits: list[str]) -> str:
    """Return the data card, whose header names the splits: datasets would not find others than its own."""
    files = "".join(f"  - split: {split}\n    path: {split}/**\n" for split in splits)
    header = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    return f"{header}\n{count_of(len(splits), 'split')} of clips, written by `mertool export`.\n"
