"""Errors: what was given, what is valid, what to do next, in one line."""

import pytest

from mertool.errors import (
    MISSING_MODALITY_REASONS,
    REASONS,
    TRANSIENT_REASONS,
    ClipError,
    MertoolError,
    check_choice,
    combine_errors,
    suggest,
)


def test_a_near_miss_is_suggested():
    assert suggest("Attension", ["attention", "concat"]) == "did you mean 'attention'? "


def test_nothing_is_suggested_for_something_else():
    assert suggest("xyz", ["attention", "concat"]) == ""


def test_a_valid_choice_is_given_back():
    assert check_choice("head", "concat", iter(["attention", "concat"])) == "concat"


def test_an_unknown_choice_lists_what_is_valid():
    with pytest.raises(MertoolError, match=r"^unknown head 'conct': did you mean 'concat'\? valid: attention, concat$"):
        check_choice("head", "conct", iter(["attention", "concat"]))


@pytest.mark.parametrize(
    ("count", "start", "end"),
    [
        (1, "f.csv: 1 fault: no 0", "no 0"),
        (3, "f.csv: 3 faults: no 0; no 1", "no 2"),
        (25, "f.csv: 25 faults", "5 more"),
    ],
)
def test_faults_in_one_error(count, start, end):
    message = str(combine_errors("f.csv", [f"no {n}" for n in range(count)]))
    assert message.startswith(start)
    assert message.endswith(end)


def test_a_clip_error_has_a_reason_and_words():
    assert ClipError("no_audio").message == REASONS["no_audio"].message
    assert ClipError("unreadable", "moov atom not found").message == "moov atom not found"


def test_a_clip_error_survives_the_way_between_processes():
    import pickle

    again = pickle.loads(pickle.dumps(ClipError("no_face", "in 9 frames")))
    assert (again.reason, again.message) == ("no_face", "in 9 frames")


def test_an_undocumented_reason_is_a_bug():
    with pytest.raises(ValueError, match="undocumented reason code 'tired'"):
        ClipError("tired")


def test_absent_and_transient_reasons_are_documented_and_apart():
    assert set(REASONS) >= MISSING_MODALITY_REASONS | TRANSIENT_REASONS
    assert not MISSING_MODALITY_REASONS & TRANSIENT_REASONS
