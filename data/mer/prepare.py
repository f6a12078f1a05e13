"""From an untouched release to manifests; the first stage of the Makefile.

    python prepare.py 2024 /data/mer2024-dataset OUTPUT_FOLDER [--candidates CSV] [--unlabelled 20000]

OUTPUT_FOLDER gets clips.csv (training clips and a sample of the unlabelled ones), labelled.csv (training clips only)
and candidates.csv (the clips to submit). Clips to submit are in candidates.csv only: no stage trains on them.
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from release import Release, read_release
from years import read_years

from mertool.errors import MertoolError, check_choice
from mertool.manifest import Clip, Manifest


def sample(clips: Sequence[Clip], count: str) -> list[Clip]:
    """Return `count` clips, or `all`; the choice depends only on their names."""
    if count != "all" and not count.isdecimal():
        raise MertoolError(f"UNLABELLED={count}: give a number of clips, or all")
    drawn = sorted(clips, key=lambda clip: hashlib.sha256(clip.clip.encode()).digest())
    return sorted(drawn[: None if count == "all" else int(count)], key=lambda clip: clip.clip)


def write_manifests(release: Release, folder: Path, unlabelled: str) -> None:
    """Write the manifests, clips.csv last, because Make takes it for the sign that all are there."""
    drawn = sample(release.others, unlabelled)
    folder.mkdir(parents=True, exist_ok=True)
    Manifest(release.labelled, folder).write(folder / "labelled.csv")
    Manifest(release.candidates, folder).write(folder / "candidates.csv")
    Manifest((*release.labelled, *drawn), folder).write(folder / "clips.csv")
    counts = Counter(clip.label for clip in release.labelled)
    print(f"labelled: {len(release.labelled)} ({', '.join(f'{counts[label]} {label}' for label in sorted(counts))})")
    print(f"unlabelled: {len(drawn)} of {len(release.others)}")
    print(f"to submit: {len(release.candidates)}")


def main() -> None:
    """Write the manifests of a release."""
    parser = argparse.ArgumentParser(description="From an untouched release of a MER challenge to manifests.")
    parser.add_argument("year")
    parser.add_argument("release", help="folder of the release")
    parser.add_argument("output", type=Path, help="folder for the manifests")
    parser.add_argument("--candidates", default="", help="list of the clips to submit, if it is not in the release")
    parser.add_argument("--unlabelled", default="20000", help="number of unlabelled clips, or all")
    options = parser.parse_args()
    try:
        years = read_years()
        check_choice("YEAR", options.year, years)
        if not options.release:
            raise MertoolError(f"where is the release? Give RELEASE=/path of the unpacked MER{options.year}")
        candidates = Path(options.candidates).absolute() if options.candidates else None
        release = read_release(Path(options.release).resolve(), years[options.year], candidates)
        for note in release.notes:
            print(f"note: {note}", file=sys.stderr)
        write_manifests(release, options.output, options.unlabelled)
    except MertoolError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
