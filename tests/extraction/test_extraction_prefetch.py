"""The two threads beside the device: one prepares ahead (Ahead), one writes behind (Sink)."""

import threading
import time

import pytest

from mertool.extraction.background_writer import BackgroundWriter
from mertool.extraction.prefetch import Prefetcher

PATIENT = 10.0  # seconds after which a thread counts as hung


def wait_until(true) -> bool:
    """Whether `true()` becomes so."""
    ends = time.monotonic() + PATIENT
    while not true():
        if time.monotonic() > ends:
            return False
        time.sleep(0.005)
    return True


# ---------------------------------------------------------------- ahead


@pytest.mark.parametrize("size", [1, 2, 100])
def test_items_come_in_their_order(size):
    with Prefetcher(range(50), size) as items:
        assert list(items) == list(range(50))


def test_there_may_be_no_item():
    with Prefetcher([], 2) as items:
        assert list(items) == []


def test_none_is_an_item():
    with Prefetcher([None, 1, None], 2) as items:
        assert list(items) == [None, 1, None]


def test_the_work_is_done_in_another_thread():
    with Prefetcher((threading.current_thread() for _ in range(1)), 1) as items:
        assert next(items) is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_thread_raises_is_raised_after_what_came_before(error):
    def work():
        yield 1
        yield 2
        raise error

    seen = []
    with pytest.raises(type(error)) as caught, Prefetcher(work(), 5) as items:
        seen.extend(iter(lambda: next(items), None))
    assert caught.value is error
    assert seen == [1, 2]


def test_it_is_no_more_than_some_items_ahead():
    made = []

    def work():
        for number in range(20):
            made.append(number)
            yield number

    with Prefetcher(work(), 3) as items:
        assert next(items) == 0
        # Three wait in the queue, and a fourth in the hand of the thread.
        assert wait_until(lambda: len(made) == 5)
        time.sleep(0.3)
        assert len(made) == 5
        assert list(items) == list(range(1, 20))


def test_leaving_early_ends_the_thread():
    def work():
        number = 0
        while True:
            yield number
            number += 1

    ahead = Prefetcher(work(), 2)
    with ahead as items:
        assert [next(items), next(items)] == [0, 1]
        assert ahead._thread.is_alive()
    assert wait_until(lambda: not ahead._thread.is_alive())


def test_an_error_outside_ends_the_thread_too():
    ahead = Prefetcher(iter(int, 1), 1)
    with pytest.raises(ZeroDivisionError), ahead as items:
        next(items)
        raise ZeroDivisionError
    assert wait_until(lambda: not ahead._thread.is_alive())


# ---------------------------------------------------------------- sink


def test_calls_are_done_in_their_order_and_in_another_thread():
    done = []
    with BackgroundWriter(2) as sink:
        for number in range(50):
            sink.put(lambda number=number: done.append((number, threading.current_thread())))
    assert [number for number, _ in done] == list(range(50))
    assert threading.current_thread() not in {thread for _, thread in done}


def test_leaving_waits_until_all_is_done():
    done = []
    with BackgroundWriter(10) as sink:
        for number in range(4):
            sink.put(lambda number=number: (time.sleep(0.05), done.append(number)))
        assert len(done) < 4
    assert done == [0, 1, 2, 3]


def test_no_more_than_some_calls_wait():
    go, done = threading.Event(), []
    with BackgroundWriter(2) as sink:
        sink.put(lambda: go.wait(PATIENT))
        putter = threading.Thread(target=lambda: [sink.put(lambda: done.append(1)) for _ in range(3)])
        putter.start()
        putter.join(0.3)
        assert putter.is_alive()  # the third waits for room
        go.set()
        putter.join(PATIENT)
        assert not putter.is_alive()
    assert done == [1, 1, 1]


def test_an_error_of_a_call_is_raised_on_leaving_and_later_calls_are_passed_over():
    done = []
    with pytest.raises(ZeroDivisionError), BackgroundWriter(10) as sink:
        held = threading.Event()
        sink.put(lambda: held.wait(PATIENT))
        sink.put(lambda: 1 / 0)
        sink.put(lambda: done.append("later"))
        held.set()
    assert done == []


def test_an_error_of_a_call_is_raised_by_the_next_put():
    failed = threading.Event()

    def fail():
        failed.set()
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"), BackgroundWriter(1) as sink:
        sink.put(fail)
        failed.wait(PATIENT)
        for _ in range(1000):  # it never hangs either, however many are put
            sink.put(lambda: None)
            time.sleep(0.001)
        pytest.fail("the error was not raised")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_put_before_an_error_outside_is_still_done(error):
    done = []
    with pytest.raises(error), BackgroundWriter(10) as sink:
        for number in range(3):
            sink.put(lambda number=number: (time.sleep(0.03), done.append(number)))
        raise error
    assert done == [0, 1, 2]


def test_an_error_outside_comes_before_one_of_a_call():
    with pytest.raises(KeyError), BackgroundWriter(10) as sink:
        sink.put(lambda: 1 / 0)
        raise KeyError("outside")
