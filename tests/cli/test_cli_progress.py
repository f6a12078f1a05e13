"""Progress of a long stage: lines where there is no terminal, rates, remaining time."""

import pytest

from mertool.cli import console
from mertool.cli.console import RateEstimator, format_bytes, format_duration, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until a test sets it: `clock[0]`, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (45, "45 s"),
        (89, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (5340, "89 min"),
        (5400, "1 h 30 min"),
        (11_100, "3 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_times_in_words(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1400, "1.4 kB"),
        (44_000, "44 kB"),
        (1_400_000_000, "1.4 GB"),
        (250e9, "250 GB"),
        (3.2e12, "3.2 TB"),
    ],
)
def test_sizes_in_words(count, words):
    assert format_bytes(count) == words


@pytest.mark.parametrize(
    ("done", "failed", "media", "words"),
    [
        (51, 0, 0.0, "5.0 clips/s, 10 s left"),
        (51, 0, 204.0, "5.0 clips/s, 20 s of media/s, 10 s left"),
        (51, 3, 204.0, "5.0 clips/s, 20 s of media/s, 3 failed, 10 s left"),
        (101, 0, 0.0, "10.0 clips/s, 0 s left"),
        (1, 1, 4.0, "1 failed"),
    ],
)
def test_the_rate_counts_from_the_first_clip(done, failed, media, words, clock):
    """Loading comes before it, and says nothing about the rest."""
    estimator = RateEstimator("clips")
    clock[0] += 100
    assert estimator.describe(1, 101, 0, min(media, 4.0)) == ""
    clock[0] += 10
    assert estimator.describe(done, 101, failed, media) == words


def test_the_time_left_is_that_of_what_is_left(clock):
    estimator = RateEstimator("epochs")
    estimator.describe(0, 100, 0, 0.0)
    clock[0] += 600
    assert estimator.describe(10, 100, 0, 0.0) == "0.0 epochs/s, 1 h 30 min left"


def test_without_a_terminal_there_is_a_line_now_and_then(clock, capsys):
    with progress("extract audio", quiet=False) as update:
        for second in range(41):
            update(2 * second, 100, second // 10, 8.0 * second)
            clock[0] += 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "extract audio: 30 of 100 clips, 2.0 clips/s, 8 s of media/s, 1 failed, 35 s left",
        "extract audio: 60 of 100 clips, 2.0 clips/s, 8 s of media/s, 3 failed, 20 s left",
    ]


def test_a_short_stage_says_nothing(clock, capsys):
    with progress("extract audio", quiet=False) as update:
        update(1, 100)
        clock[0] += 14
        update(99, 100)
    assert capsys.readouterr().err == ""


def test_nothing_is_told_before_the_first_clip_is_done(clock, capsys):
    with progress("extract audio", quiet=False) as update:
        clock[0] += 60
        update(0, 100)
        assert capsys.readouterr().err == ""
        update(1, 100)
    assert "extract audio: 1 of 100 clips" in capsys.readouterr().err


def test_quiet_is_quiet(clock, capsys):
    with progress("extract audio", quiet=True) as update:
        clock[0] += 60
        update(50, 100, 2, 10.0)
        update(50, 100)
    assert capsys.readouterr() == ("", "")


def test_another_unit(clock, capsys):
    with progress("fuse", quiet=False, unit="epochs") as update:
        update(0, 20)
        clock[0] += 20
        update(10, 20)
    assert capsys.readouterr().err == "fuse: 10 of 20 epochs, 0.5 epochs/s, 20 s left\n"


def test_each_part_of_a_stage_has_a_rate_of_its_own(clock, capsys):
    """Predict does one modality after the other, and `extract text --asr` transcribes before it encodes."""
    with progress("predict", quiet=False) as update:
        for second in range(1, 101):
            clock[0] += 1
            update(second, 100)
        capsys.readouterr()
        for second in range(1, 21):
            clock[0] += 1
            update(second, 100)
    assert "1.0 clips/s" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    with progress("extract audio", quiet=False) as update:
        update(1, 2, 1, 3.0)
        update(2, 2)
    assert capsys.readouterr().out == ""
