"""Progress of a long stage: lines where there is no terminal, rates, remaining time."""

import pytest

from mertool.cli import progress as module
from mertool.cli.console import format_bytes, format_duration
from mertool.cli.progress import RateEstimator, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until a test sets it: `clock[0]`, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
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


@pytest.fixture
def tell(clock):
    """A function that steps the clock and tells an estimator what is done; it returns the words."""
    estimator = RateEstimator("clips")

    def step(seconds, done, total=1000, failed=0, media=0.0):
        clock[0] += seconds
        return estimator.describe(done, total, failed=failed, media_seconds=media)

    return step


def test_the_rate_counts_from_the_first_clip(tell):
    """Loading comes before it, and says nothing about the rest."""
    assert tell(100, 1, media=4.0) == ""
    words = [tell(1, 1 + 5 * second, failed=3, media=4.0 + 20 * second) for second in range(1, 21)]
    assert words[-1] == "5.0 clips/s, 20 s of media/s, 3 failed, 3 min left"
    assert words[8] == "3 failed"


@pytest.mark.parametrize(("seconds", "clips"), [(9, 500), (60, 9)])
def test_nothing_is_estimated_from_a_few_seconds_or_a_few_clips(seconds, clips, tell):
    tell(0, 0)
    for done in range(1, clips + 1):
        assert tell(seconds / clips, done) == ""


def test_a_slow_start_is_forgotten(tell):
    """The first clip of a run of a few minutes took a minute: no hours are left."""
    tell(0, 0)
    tell(60, 1)
    words = [tell(1, 1 + 5 * second) for second in range(1, 121)]
    assert words[-1] == "5.0 clips/s, 80 s left"


def test_clips_that_were_there_before_do_not_count(tell):
    tell(0, 0, total=50_000)
    assert tell(0.1, 39_718, total=50_000) == ""
    words = [tell(1, 39_718 + 2 * second, total=50_000) for second in range(1, 31)]
    assert words[-1] == "2.0 clips/s, 85 min left"


def test_a_batch_that_is_written_at_once_does_count(tell):
    tell(0, 0)
    words = [tell(8.0 if row == 0 else 0.001, 32 * batch + row) for batch in range(1, 9) for row in range(32)]
    assert words[-1].startswith("4.")


def test_the_time_left_of_a_slow_stage(tell):
    tell(0, 0, total=100)
    words = [tell(60, done, total=100) for done in range(1, 11)]
    assert words[-2:] == ["", "0.0 clips/s, 1 h 30 min left"]


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
        for epoch in range(11):
            update(epoch, 20)
            clock[0] += 2
    assert capsys.readouterr().err == "fuse: 8 of 20 epochs\n"


def test_each_part_of_a_stage_has_a_rate_of_its_own(clock, capsys):
    """`extract text --asr` transcribes before it encodes."""
    with progress("extract text", quiet=False) as update:
        for second in range(1, 101):
            clock[0] += 0.1
            update(second, 100)
        capsys.readouterr()
        for second in range(1, 21):
            clock[0] += 1
            update(second, 100)
    assert "1.0 clips/s" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True, raising=False)
    with progress("extract audio", quiet=False) as update:
        update(1, 2, 1, 3.0)
        update(2, 2)
    assert capsys.readouterr().out == ""
