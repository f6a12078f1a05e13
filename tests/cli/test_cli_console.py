"""Scores, differences and their intervals in words."""

import pytest

from mertool.cli.console import format_gain, format_intervals, format_score, format_test

GAIN = {"difference": 0.012, "low": -0.003, "high": 0.028, "p": 0.11, "unit": "speakers", "units": 24}


def test_a_score_with_and_without_an_interval():
    assert format_score({"value": 0.7304, "low": 0.701, "high": 0.7577}) == "73.0 [70.1, 75.8]"
    assert format_score({"value": 0.7304, "low": None, "high": None}) == "73.0"


def test_a_difference_with_its_tests():
    assert format_gain(GAIN) == "+1.2 [-0.3, +2.8], p = 0.110"
    assert format_gain({**GAIN, "p_holm": 0.22}) == "+1.2 [-0.3, +2.8], p = 0.110 (Holm 0.220)"
    assert format_gain({**GAIN, "low": None, "high": None}) == "+1.2, p = 0.110"
    assert format_test(GAIN) == "sign-flip test over 24 speakers"
    assert format_test({**GAIN, "unit": "clips", "units": 1}) == "sign-flip test over 1 clip"


@pytest.mark.parametrize(
    ("unit", "low", "told"),
    [
        ("speakers", 0.1, "95 % intervals over speakers"),
        ("speakers", None, "no intervals: they need 5 speakers or more"),
        ("clips", None, "no intervals: they need two clips"),
    ],
)
def test_a_table_says_what_its_intervals_are(unit, low, told):
    assert format_intervals(unit, {"value": 0.5, "low": low, "high": low}) == told
