"""Progress of steps within steps."""

from mertool.probing.progress import ProgressSpan


def test_a_step_fills_its_share_of_the_bar():
    reports = []
    first, second = ProgressSpan(lambda done, total: reports.append((done, total))).split([1.0, 3.0])
    first(1, 2)
    first(2, 2)
    for half in second.split([1, 1]):
        half(5, 5)
    assert reports == [(12, 100), (25, 100), (62, 100), (100, 100)]
