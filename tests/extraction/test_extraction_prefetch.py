"""The two threads beside the device: `Prefetcher` prepares batches, `BackgroundWriter` writes results."""

import threading
import time

import pytest

from mertool.extraction.background_writer import BackgroundWriter
from mertool.extraction.prefetch import Prefetcher

PATIENCE = 60.0  # seconds after which a thread counts as hung


def becomes_true(condition) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# ---------------------------------------------------------------- Prefetcher


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

    items_before = []
    with pytest.raises(type(error)) as caught, Prefetcher(work(), 5) as items:
        items_before.extend(iter(lambda: next(items), None))
    assert caught.value is error
    assert items_before == [1, 2]


def test_the_thread_is_never_more_than_size_items_ahead():
    consumed, ahead = [], []

    def work():
        for number in range(20):
            ahead.append(number - len(consumed))
            yield number

    with Prefetcher(work(), 3) as items:
        consumed.append(next(items))
        # Three items wait in the queue, and the thread holds a fourth one.
        assert becomes_true(lambda: len(ahead) == 5)
        for item in items:
            consumed.append(item)
    assert consumed == list(range(20))
    assert max(ahead) <= 3 + 1


def test_leaving_early_ends_the_thread():
    def work():
        number = 0
        while True:
            yield number
            number += 1

    prefetcher = Prefetcher(work(), 2)
    with prefetcher as items:
        assert [next(items), next(items)] == [0, 1]
        assert prefetcher._thread.is_alive()
    assert becomes_true(lambda: not prefetcher._thread.is_alive())


def test_an_error_outside_ends_the_thread_too():
    prefetcher = Prefetcher(iter(int, 1), 1)
    with pytest.raises(ZeroDivisionError), prefetcher as items:
        next(items)
        raise ZeroDivisionError
    assert becomes_true(lambda: not prefetcher._thread.is_alive())


# ---------------------------------------------------------------- BackgroundWriter


def test_calls_are_run_in_order_and_in_another_thread():
    done = []
    with BackgroundWriter(2) as writer:
        for number in range(50):
            writer.put(lambda number=number: done.append((number, threading.current_thread())))
    assert [number for number, _ in done] == list(range(50))
    assert threading.current_thread() not in {thread for _, thread in done}


def put_calls_that_run_later(writer, done):
    """Put calls that wait until the test leaves the writer, or a moment longer."""
    go = threading.Event()
    writer.put(lambda: go.wait(PATIENCE))
    for number in range(4):
        writer.put(lambda number=number: done.append(number))
    threading.Timer(0.05, go.set).start()


def test_leaving_waits_for_all_calls():
    done = []
    with BackgroundWriter(10) as writer:
        put_calls_that_run_later(writer, done)
    assert done == [0, 1, 2, 3]


def test_put_blocks_while_too_many_calls_wait():
    go, done = threading.Event(), []
    with BackgroundWriter(2) as writer:
        writer.put(lambda: go.wait(PATIENCE))
        putter = threading.Thread(target=lambda: [writer.put(lambda: done.append(1)) for _ in range(3)])
        putter.start()
        putter.join(0.05)
        assert putter.is_alive()  # the third waits for room
        go.set()
        putter.join(PATIENCE)
        assert not putter.is_alive()
    assert done == [1, 1, 1]


def test_an_error_of_a_call_is_raised_on_leaving_and_later_calls_are_skipped():
    done = []
    with pytest.raises(ZeroDivisionError), BackgroundWriter(10) as writer:
        held = threading.Event()
        writer.put(lambda: held.wait(PATIENCE))
        writer.put(lambda: 1 / 0)
        writer.put(lambda: done.append("later"))
        held.set()
    assert done == []


def test_an_error_of_a_call_is_raised_by_the_next_put():
    failed = threading.Event()

    def fail():
        failed.set()
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"), BackgroundWriter(1) as writer:
        writer.put(fail)
        assert failed.wait(PATIENCE)
        assert becomes_true(lambda: writer._error)
        writer.put(lambda: None)
        pytest.fail("the error was not raised")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_calls_before_an_error_outside_are_still_run(error):
    done = []
    with pytest.raises(error), BackgroundWriter(10) as writer:
        put_calls_that_run_later(writer, done)
        raise error
    assert done == [0, 1, 2, 3]


def test_an_error_outside_comes_before_one_of_a_call():
    with pytest.raises(KeyError), BackgroundWriter(10) as writer:
        writer.put(lambda: 1 / 0)
        raise KeyError("outside")
