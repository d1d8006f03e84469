"""`shutdown()` of queues, against what `queue.Queue` does for threads."""

from __future__ import annotations

import queue
import sys
import threading
import weakref

import pytest

from phalanx.connection import wait
from phalanx.queues import ShutDown

KINDS = ["Queue", "JoinableQueue"]


def report(ready, answers, method, *args):
    """Calls `method` and says how that ended."""
    ready.release()
    try:
        answers.put(("returned", method(*args)))
    except (ShutDown, queue.Full, queue.Empty) as error:
        answers.put(("raised", type(error).__name__))


def take_until_shut(q, answers):
    taken = []
    try:
        while True:
            taken.append(q.get())
    except ShutDown:
        answers.put(taken)


def shut(q, immediate):
    q.shutdown(immediate)


def test_the_exception_is_that_of_the_standard_library():
    if sys.version_info >= (3, 13):
        assert ShutDown is queue.ShutDown
    import phalanx.queues

    assert phalanx.queues.ShutDown is ShutDown
    assert ShutDown.__mro__[1] is Exception


STANDARD = ["queue.Queue"] if sys.version_info >= (3, 13) else []


@pytest.fixture(params=[*STANDARD, *KINDS, "manager"])
def make(request, mp):
    """Makes one kind of queue: all of them do the same."""
    if request.param == "queue.Queue":
        yield queue.Queue
    elif request.param == "manager":
        with mp.Manager() as manager:
            yield manager.JoinableQueue
    else:
        yield getattr(mp, request.param)


def test_nothing_is_put_and_the_rest_is_taken(make):
    q = make(2)
    q.put(1)
    q.put(2)
    q.shutdown()
    for block in (True, False):
        with pytest.raises(ShutDown):
            q.put(3, block)
    assert (q.get(), q.qsize(), q.get(False)) == (1, 1, 2)
    for block in (True, False):
        with pytest.raises(ShutDown):
            q.get(block)
    q.shutdown()
    assert q.empty() and not q.full()


def test_immediately_nothing_is_taken(make):
    q = make(2)
    q.put(1)
    q.put(2)
    q.shutdown(immediate=True)
    assert q.empty() and not q.full() and q.qsize() == 0
    with pytest.raises(ShutDown):
        q.get_nowait()
    with pytest.raises(ShutDown):
        q.put_nowait(3)


def test_immediately_after_all(make):
    q = make()
    q.put(1)
    q.put(2)
    q.shutdown()
    assert q.get() == 1
    q.shutdown(True)
    with pytest.raises(ShutDown):
        q.get()


def test_what_is_thrown_away_counts_as_done(make):
    q = make()
    if not hasattr(q, "join"):
        return
    for number in range(3):
        q.put(number)
    q.get()
    q.shutdown(immediate=True)
    q.task_done()
    q.join()
    with pytest.raises(ValueError):
        q.task_done()


def test_work_goes_on_after_a_gentle_end(make):
    q = make()
    if not hasattr(q, "join"):
        return
    q.put(1)
    q.shutdown()
    assert q.get() == 1
    q.task_done()
    q.join()


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_in_another_process_is_woken(ctx, kind, immediate):
    empty, full = getattr(ctx, kind)(), getattr(ctx, kind)(1)
    full.put("first")
    ready, answers = ctx.Semaphore(0), ctx.SimpleQueue()
    waiting = [empty.get, empty.get]
    children = [ctx.Process(target=report, args=(ready, answers, empty.get)) for _ in waiting]
    children += [ctx.Process(target=report, args=(ready, answers, full.put, 2)) for _ in waiting]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    empty.shutdown(immediate)
    full.shutdown(immediate)
    assert [answers.get() for _ in children] == [("raised", "ShutDown")] * 4
    for child in children:
        child.join()
    assert full.empty() == immediate


def test_join_is_released_in_other_processes(ctx):
    q = ctx.JoinableQueue()
    for number in range(3):
        q.put(number)
    q.get()
    q.task_done()
    ready, answers = ctx.Semaphore(0), ctx.SimpleQueue()
    child = ctx.Process(target=report, args=(ready, answers, q.join))
    child.start()
    ready.acquire()
    q.shutdown(immediate=True)
    assert answers.get() == ("returned", None)
    child.join()


def test_a_child_shuts_its_parents_queue(ctx):
    q, answers = ctx.Queue(), ctx.SimpleQueue()
    consumer = ctx.Process(target=take_until_shut, args=(q, answers))
    consumer.start()
    for number in range(100):
        q.put(number)
    other = ctx.Process(target=shut, args=(q, False))
    other.start()
    assert answers.get() == list(range(100))
    with pytest.raises(ShutDown):
        q.get()
    assert q.is_shutdown
    consumer.join()
    other.join()


def test_threads_are_woken(mp):
    q, answers = mp.Queue(), queue.Queue()
    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=report, args=(ready, answers, q.get)) for _ in range(3)]
    for thread in threads:
        thread.start()
        ready.acquire()
    q.shutdown()
    for thread in threads:
        thread.join()
    assert [answers.get() for _ in threads] == [("raised", "ShutDown")] * 3


def test_many_items_in_one_call(mp):
    q = mp.Queue()
    assert q.put_many(range(10)) == 10
    q.shutdown()
    with pytest.raises(ShutDown):
        q.put_many(range(3))
    assert q.get_many(6) + q.get_many(100) == list(range(10))
    with pytest.raises(ShutDown):
        q.get_many(1)


def test_whoever_polls_hears_of_it(mp):
    q = mp.Queue()
    q.put(1)
    q.get()
    assert not q._reader.poll()
    ready, answers = threading.Semaphore(0), queue.Queue()
    thread = threading.Thread(target=report, args=(ready, answers, wait, [q._reader], 60))
    thread.start()
    ready.acquire()
    q.shutdown()
    thread.join()
    assert answers.get() == ("returned", [q._reader])
    assert q._reader.poll(60)
    with pytest.raises(ShutDown):
        q._reader.recv()


def test_large_items_are_freed(mp):
    from phalanx import _phalanx

    q = mp.Queue()
    before = _phalanx.arena_usage()[0]
    for _ in range(8):
        q.put(b"x" * 1_000_000)
    q.shutdown(immediate=True)
    assert _phalanx.arena_usage()[0] - before < 1_000_000


def test_many_at_a_time(ctx):
    """Each item is taken once or not at all, whenever the end comes."""
    q, answers = ctx.Queue(4), ctx.SimpleQueue()
    consumers = [ctx.Process(target=take_until_shut, args=(q, answers)) for _ in range(2)]
    for consumer in consumers:
        consumer.start()
    put = 0
    ender = threading.Thread(target=lambda: (answers.get(), q.shutdown()))
    ender.start()
    try:
        while True:
            q.put(put)
            put += 1
            if put == 200:
                answers.put("now")
    except ShutDown:
        pass
    ender.join()
    taken = [answers.get() for _ in consumers]
    for consumer in consumers:
        consumer.join()
    assert sorted(sum(taken, [])) == list(range(put))


def test_it_holds_nothing(mp):
    q = mp.Queue()
    q.shutdown(True)
    gone = weakref.ref(q)
    del q
    assert gone() is None
