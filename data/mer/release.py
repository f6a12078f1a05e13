"""The files of an untouched release: which clips are labelled, to be submitted, or neither."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from years import Year, read_years

from mertool.errors import MertoolError, count_of
from mertool.interop.labels import read_labels, read_transcripts
from mertool.interop.submission import list_names, read_candidates
from mertool.manifest import (
    AUDIO_SUFFIXES,
    VIDEO_SUFFIXES,
    Clip,
    canonical_label,
    clip_id,
    describe_unknown_labels,
)
from mertool.manifest.folder import list_media_files

LANGUAGE = "chinese"  # of the transcripts; the English ones are translations


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release that was found complete.

    Attributes:
        labelled: The training clips, with labels, in the order of their CSV.
        candidates: The clips to submit, in the order of their list.
        others: All other clips, sorted by name.
        notes: Sentences for the user.
    """

    labelled: tuple[Clip, ...]
    candidates: tuple[Clip, ...]
    others: tuple[Clip, ...]
    notes: tuple[str, ...]


def read_release(folder: Path, year: Year, candidates: Path | None = None) -> Release:
    """Read a release; `candidates` is a list of clips to submit that is not the one of the release.

    Raises MertoolError for a folder of another year, one that is not completely unpacked, and for a list that is of
    another challenge.
    """
    label_file = _find_labels(folder, year)
    list_file = _find_list(folder, year, candidates)
    videos = {name: _files_by_name(_find_folder(folder, name, year), VIDEO_SUFFIXES) for name in year.videos}
    label_of = _read_label_of(label_file, year)
    labelled_videos = _merge(videos[name] for name in year.labelled)
    _check_unpacked(label_of, labelled_videos, kind="training clips", folder=folder, places=year.labelled)
    names = _read_list(list_file, folder=folder, year=year, given=candidates is not None)
    other_videos = _merge(videos[name] for name in year.unlabelled)
    _check_list(list_file, names, other_videos, label_of, year=year)
    _check_unpacked(names, other_videos, kind="clips to submit", folder=folder, places=year.unlabelled)
    others = sorted(set(other_videos) - set(names) - set(label_of))
    audio, notes = _find_audio(folder, year, [*label_of, *names])
    text_of = _read_texts(folder, year)
    if year.rows and len(names) != year.rows:
        notes.append(f"{list_file} names {count_of(len(names), 'clip')}, {year.name} announced {year.rows}")

    def clip(name: str, videos: dict[str, Path], split: str) -> Clip:
        return Clip(clip=name, path=videos[name], audio=audio.get(name), text=text_of.get(name), split=split)

    return Release(
        labelled=tuple(replace(clip(name, labelled_videos, "train"), label=label) for name, label in label_of.items()),
        candidates=tuple(clip(name, other_videos, "test") for name in names),
        others=tuple(clip(name, other_videos, "unlabelled") for name in others),
        notes=tuple(notes),
    )


# ------------------------------------------------------------ which files


def _find_labels(folder: Path, year: Year) -> Path:
    """Return the CSV of training labels; its absence shows that the folder is another one than is needed."""
    if not folder.is_dir():
        raise MertoolError(f"RELEASE {folder} is no folder: give the unpacked release of {year.name}")
    if found := _find(folder, year.labels):
        return found
    others = [other for other in read_years().values() if _find(folder, other.labels)]
    if others:
        hint = f"it is the release of {others[0].name}, which has {others[0].labels}: give YEAR={others[0].year}"
    elif processed := [*folder.glob("*label*6way.npz")]:
        hint = f"it is what MERTools makes of a release ({processed[0].name}): give the release itself"
    else:
        hint = "give the folder that holds this file, or unpack it there"
    raise MertoolError(f"RELEASE {folder} has no {year.labels} of {year.name}: {hint}")


def _find_list(folder: Path, year: Year, given: Path | None) -> Path:
    """Return the CSV that names the clips to submit."""
    found = given or _find(folder, year.candidates[0])
    if found is None:
        raise MertoolError(
            f"RELEASE {folder} has no {year.candidates[0]}, the list of the clips to submit: copy it there, or give "
            "CANDIDATES=/path/to/it"
        )
    return found


def _find(folder: Path, name: str) -> Path | None:
    """Return a file or folder of this name in the release or in one of its folders."""
    found = [folder / name, *sorted(folder.glob(f"*/{name}"))]
    return next((path for path in found if path.exists()), None)


def _find_folder(folder: Path, name: str, year: Year) -> Path:
    found = _find(folder, name)
    if found is None or not found.is_dir():
        raise MertoolError(
            f"RELEASE {folder} has no folder {name}, so {year.name} is not completely unpacked: unpack its archives of "
            "videos there"
        )
    return found


def _files_by_name(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return the media files below a folder by the name of their clip."""
    files = [file for file in list_media_files(folder).files if file.suffix.lower() in suffixes]
    return {clip_id(file.name): file for file in reversed(files)}


def _merge(folders: Iterable[dict[str, Path]]) -> dict[str, Path]:
    """Return the files of several folders by name; of files of one name that of the first folder."""
    merged: dict[str, Path] = {}
    for files in folders:
        merged = {**files, **merged}
    return merged


def _find_audio(folder: Path, year: Year, names: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Return the audio file of each clip that has one, and a note if there is no folder of them."""
    if not year.audio:
        return {}, []
    place = _find(folder, year.audio)
    if place is None:
        return {}, [f"{folder} has no folder {year.audio}: audio is read from the videos"]
    files = _files_by_name(place, AUDIO_SUFFIXES)
    _check_unpacked(names, files, kind="clips", folder=folder, places=[year.audio])
    return files, []


# ------------------------------------------------------------ what they say


def _read_label_of(path: Path, year: Year) -> dict[str, str]:
    """Return the label of each training clip in the words of the challenge."""
    labels = {clip_id(name): row.label for name, row in read_labels(path).labelled().items() if row.label}
    if unknown := describe_unknown_labels(labels.values(), year.classes):
        raise MertoolError(f"{path}: {unknown}")
    return {name: str(canonical_label(label, year.classes)) for name, label in labels.items()}


def _read_texts(folder: Path, year: Year) -> dict[str, str]:
    """Return the transcripts by clip, without empty ones."""
    if not year.transcripts:
        return {}
    path = _find(folder, year.transcripts)
    if path is None:
        raise MertoolError(f"RELEASE {folder} has no {year.transcripts}, the transcripts of {year.name}: copy it there")
    return {clip_id(row.name): row.text for row in read_transcripts(path, LANGUAGE).rows if row.text}


def _read_list(path: Path, *, folder: Path, year: Year, given: bool) -> list[str]:
    """Return the names of the clips to submit. A list that was given must be one of the release, if it has any."""
    names = read_candidates(path)
    own = [found for name in year.candidates if (found := _find(folder, name))]
    if given and own and not any(set(names) == set(read_candidates(file)) for file in own):
        raise MertoolError(
            f"CANDIDATES {path} names other clips than {' and '.join(file.name for file in own)} of the release, so it "
            f"is not the list of {year.name}: leave it out"
        )
    return names


def _check_list(
    path: Path, names: Sequence[str], videos: dict[str, Path], label_of: dict[str, str], *, year: Year
) -> None:
    """Raise MertoolError for a list of another challenge: of clips that are not there, or that are labelled."""
    hint = f"it is the list of another challenge, give that of {year.name}"
    if videos and not any(name in videos for name in names):
        raise MertoolError(
            f"{path} names {count_of(len(names), 'clip')}, none of which is in the release (first: {names[0]}): {hint}"
        )
    if labelled := [name for name in names if name in label_of]:
        raise MertoolError(f"{path} names clips that are labelled for training: {list_names(labelled)}: {hint}")


def _check_unpacked(
    names: Iterable[str], files: dict[str, Path], *, kind: str, folder: Path, places: Sequence[str]
) -> None:
    """Raise MertoolError if clips have no file."""
    names = list(names)
    if missing := [name for name in names if name not in files]:
        raise MertoolError(
            f"RELEASE {folder} is not completely unpacked: {len(missing)} of {len(names)} {kind} have no file in "
            f"{' or '.join(places)} (first: {missing[0]}): unpack the rest of its archives"
        )
