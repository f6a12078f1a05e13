"""Paired tests between all compared systems, corrected for their number."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from mertool.report.systems import System
from mertool.significance import adjust_by_holm, known_speakers, paired_test

MAX_SYSTEMS = 12  # 66 pairs


def compare_systems(systems: Sequence[System]) -> list[dict[str, Any]]:
    """Return a test of each pair of main systems that predict the same classes for some of the same clips.

    A test is of the clips that both predict. All of them are one family, which Holm's procedure adjusts.
    """
    compared = [system for system in systems if system.is_main][:MAX_SYSTEMS]
    tests = []
    for first, second in combinations(compared, 2):
        rows = [{clip: row for row, clip in enumerate(system.clips)} for system in (first, second)]
        clips = sorted(rows[0].keys() & rows[1].keys())
        if first.classes != second.classes or len(clips) < 2:
            continue
        own, other = ([positions[clip] for clip in clips] for positions in rows)
        truth = first.truth[own]
        if (truth != second.truth[other]).any():
            continue  # labels of two manifests that disagree
        speakers = None if first.speakers is None else known_speakers([str(name) for name in first.speakers[own]])
        test = paired_test(
            truth, first.predicted[own], second.predicted[other], n_classes=len(first.classes), groups=speakers
        )
        tests.append({"first": first.name, "second": second.name, "clips": len(clips), **test})
    adjust_by_holm(tests)
    return tests
