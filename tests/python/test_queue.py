"""Queue, JoinableQueue and SimpleQueue."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
import time

import pytest

from phalanx.queues import JoinableQueue, Queue, SimpleQueue

VALUES = [
    None,
    True,
    0,
    -129,
    2**63 - 1,
    -(2**63),
    2**63,
    10**400,
    1.5,
    float("inf"),
    "",
    "naïve",
    "x" * 300,
    "\ud800",
    b"",
    b"\0\xff" * 50_000,
    (),
    (1, (2.0, ("three", (b"four", None)))),
    [1, "two", (3,)],
    [[1], [2]],
    {"a": 1, 2: (3, 4)},
    {"nested": {"list": [1, 2]}},
    {1, 2, 3},
    complex(1, 2),
    bytearray(b"x" * 100_000),
    range(10),
    "y" * 200_000,
    ("z" * 200_000, 1),
]


class Unpicklable:
    def __reduce__(self):
        raise TypeError("this one stays at home")


class Nested:
    """Puts something into a queue while it is pickled itself."""

    def __init__(self, inner):
        self.inner = inner

    def __reduce__(self):
        self.inner.put([{"inside"}])
        return str, ("outside",)


def put_batches(q, begin):
    for first in range(begin, begin + 1000, 20):
        q.put_many(list(range(first, first + 20)))


def get_batches(q, results):
    got = []
    while None not in got:
        got += q.get_many(7)
    # What is behind the end is for others.
    q.put_many(got[got.index(None) + 1 :])
    results.put(got[: got.index(None)])


def put_all(q, items):
    for item in items:
        q.put(item)


def put_range(q, start, count):
    for number in range(start, start + count):
        q.put(number)


def echo(source, target):
    while (item := source.get()) is not None:
        target.put(item)


def take_sum(q, answer):
    total = 0
    while (number := q.get()) is not None:
        total += number
    answer.put(total)


def work(q):
    while True:
        q.get()
        q.task_done()


def send_through(q, handed):
    handed.put("by a handle that came through a queue")
    q.put("done")


def check_arrays(source, target):
    import numpy as np

    array = source.get()
    array += 1
    target.put((array.flags.writeable, float(array.sum()), np.asfortranarray(array)))


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_smoke(ctx, kind):
    there, back = getattr(ctx, kind)(), getattr(ctx, kind)()
    process = ctx.Process(target=echo, args=(there, back))
    process.start()
    for value in VALUES[1:]:
        there.put(value)
    got = [back.get() for _ in VALUES[1:]]
    there.put(None)
    process.join()
    assert process.exitcode == 0
    assert got == VALUES[1:]
    assert [type(value) for value in got] == [type(value) for value in VALUES[1:]]
    assert there.empty() and back.empty()


def test_an_item_keeps_what_it_holds_twice(mp):
    q = mp.Queue()
    inner: list[int] = []
    q.put((inner, inner))
    first, second = q.get()
    assert first is second
    recursive: list[object] = []
    recursive.append(recursive)
    q.put(recursive)
    got = q.get()
    assert got[0] is got


def test_subclasses_of_builtin_types_stay_what_they_are(mp):
    import collections
    import enum

    class Kept:
        pass

    number = enum.IntEnum("number", "one two")
    globals()["number"] = number
    number.__module__, number.__qualname__ = __name__, "number"
    q = mp.Queue()
    for value in (number.two, collections.OrderedDict(a=1), collections.Counter("aab")):
        q.put(value)
        got = q.get()
        assert got == value and type(got) is type(value)


def test_sizes_are_exact(mp):
    q = mp.Queue(3)
    assert (q.qsize(), q.empty(), q.full()) == (0, True, False)
    for expected in (1, 2, 3):
        q.put("x")
        assert (q.qsize(), q.empty(), q.full()) == (expected, False, expected == 3)
    with pytest.raises(queue.Full):
        q.put("y", False)
    with pytest.raises(queue.Full):
        q.put("y", timeout=0.01)
    with pytest.raises(queue.Full):
        q.put_nowait("y")
    assert [q.get(), q.get_nowait(), q.get(False)] == ["x"] * 3
    with pytest.raises(queue.Empty):
        q.get(False)
    started = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(True, 0.05)
    assert time.monotonic() - started >= 0.05
    with pytest.raises(queue.Empty):
        q.get(timeout=-1)


@pytest.mark.parametrize("maxsize", [0, -5])
def test_no_bound(mp, maxsize):
    q = mp.Queue(maxsize)
    put_range(q, 0, 5000)
    assert q.qsize() == 5000 and not q.full()
    assert [q.get() for _ in range(5000)] == list(range(5000))


def test_many_producers_and_consumers(ctx):
    q, answers = ctx.Queue(50), ctx.Queue()
    makers = [ctx.Process(target=put_range, args=(q, k * 500, 500)) for k in range(3)]
    eaters = [ctx.Process(target=take_sum, args=(q, answers)) for _ in range(2)]
    for process in makers + eaters:
        process.start()
    for process in makers:
        process.join()
    put_all(q, [None] * len(eaters))
    assert sum(answers.get() for _ in eaters) == sum(range(1500))
    for process in eaters:
        process.join()


def test_nothing_stays_behind_when_a_producer_exits(ctx):
    q = ctx.Queue()
    process = ctx.Process(target=put_all, args=(q, [b"x" * 100_000] * 50))
    process.start()
    process.join()
    assert process.exitcode == 0
    got = []
    while not q.empty():
        got.append(q.get())
    assert got == [b"x" * 100_000] * 50


def test_threads_share_a_queue(mp):
    q = mp.Queue(10)
    sums: list[int] = []

    def consume():
        total = 0
        while (number := q.get()) is not None:
            total += number
        sums.append(total)

    threads = [threading.Thread(target=consume) for _ in range(3)]
    threads += [threading.Thread(target=put_range, args=(q, 0, 1000)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads[3:]:
        thread.join()
    put_all(q, [None] * 3)
    for thread in threads[:3]:
        thread.join()
    assert sum(sums) == 3 * sum(range(1000))


def test_many_at_once(mp):
    q = mp.Queue()
    assert q.put_many(range(100)) == 100
    assert q.get_many(30) == list(range(30))
    assert q.get_many(1000, timeout=1) == list(range(30, 100))
    with pytest.raises(queue.Empty):
        q.get_many(5, timeout=0.01)
    with pytest.raises(ValueError, match="max_items"):
        q.get_many(0)


def test_many_of_all_kinds_keep_their_order(mp):
    kinds = [1, "two", (3,), b"4" * 40_000, {5: {6}}, b"7" * 100_000, {"eight": 9}, 10**30]
    for items in (kinds * 100, range(10_000), (str(i) * 90 for i in range(1000))):
        expected = list(items)
        q = mp.Queue()
        assert q.put_many(iter(expected) if hasattr(items, "send") else items) == len(expected)
        assert q.qsize() == len(expected)
        got = []
        while len(got) < len(expected):
            got += q.get_many(len(expected), timeout=10)
        assert got == expected


def test_many_stop_at_what_cannot_be_put(mp):
    q = mp.Queue(300)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        q.put_many([1, 2, Unpicklable(), 3])
    assert q.get_many(10) == [1, 2]
    with pytest.raises(queue.Full):
        q.put_many(list(range(1000)), timeout=0.01)
    assert q.get_many(1000) == list(range(300))
    with pytest.raises(ZeroDivisionError):
        q.put_many(1 // i for i in (1, 0))
    assert q.get() == 1
    assert q.put_many([]) == 0 and q.empty()


class Refusing:
    """Cannot be unpickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return refuse, (self.error,)


def refuse(error):
    raise error


def test_many_lose_nothing_before_what_cannot_be_unpickled(mp):
    q = mp.JoinableQueue()
    q.put_many([1, {2}, Refusing(KeyError("three")), 4, {5}, Refusing(OSError("six"))])
    assert q.get_many(10) == [1, {2}]
    with pytest.raises(KeyError, match="three"):
        q.get_many(10)
    assert q.get_many(10) == [4, {5}]
    with pytest.raises(OSError, match="six"):
        q.get()
    assert q.empty()
    q.put_many([Refusing(KeyError("one")), 2, Refusing(KeyError("three"))])
    with pytest.raises(KeyError, match="one"):
        q.get_many(10)
    assert q.get_many(10) == [2]
    with pytest.raises(KeyError, match="three"):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get_nowait()
    for _ in range(9):
        q.task_done()
    q.join()


def test_many_are_not_lost_by_ctrl_c(mp):
    q = mp.Queue()
    q.put_many([1, {2}, Refusing(KeyboardInterrupt()), 4])
    found = None
    with pytest.raises(KeyboardInterrupt):
        found = q.get_many(10)
        for _ in range(1000):  # it comes soon
            time.sleep(0.01)
    assert found in ([1, {2}], None)
    assert q.get() == 4


def test_many_from_several_to_several(mp):
    q, results = mp.Queue(50), mp.Queue()
    producers = [mp.Process(target=put_batches, args=(q, 1000 * n)) for n in range(2)]
    consumers = [mp.Process(target=get_batches, args=(q, results)) for _ in range(2)]
    for process in producers + consumers:
        process.start()
    for process in producers:
        process.join()
    q.put_many([None] * 2)
    got = [results.get() for _ in consumers]
    for process in consumers:
        process.join()
    assert sorted(got[0] + got[1]) == list(range(2000))


def test_unpicklable_objects_raise_and_change_nothing(mp):
    q = mp.JoinableQueue(2)
    for item in (Unpicklable(), [Unpicklable()], lambda: None, threading.Lock()):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            q.put(item)
        assert q.qsize() == 0
    q.put(1)
    assert q.get() == 1
    q.task_done()
    q.join()


def test_a_subclass_can_be_told_of_an_unpicklable_object(ctx):
    told = []

    class Telling(Queue):
        @staticmethod
        def _on_queue_feeder_error(e, obj):
            told.append((type(e), type(obj)))

    q = Telling(ctx=ctx)
    q.put(Unpicklable())
    q.put("next")
    assert q.get() == "next"
    assert told == [(TypeError, Unpicklable)]


def test_pickling_may_use_queues(mp):
    q, inner = mp.Queue(), mp.Queue()
    q.put(Nested(inner))
    assert q.get() == "outside"
    assert inner.get() == [{"inside"}]


def test_close(mp):
    for kind in (mp.Queue, mp.JoinableQueue):
        q = kind()
        q.put(1)
        with pytest.raises(AssertionError, match="not closed"):
            q.join_thread()
        q.close()
        q.close()
        q.join_thread()
        q.cancel_join_thread()
        for call in (lambda q=q: q.put(1), q.get, q.get_nowait, lambda q=q: q.put_many([1])):
            with pytest.raises(ValueError, match="is closed"):
                call()
        with pytest.raises(OSError, match="is closed"):
            q.empty()
        unused = kind()
        unused.close()
        assert unused.empty()


def test_what_was_put_before_the_close_is_read_elsewhere(ctx):
    q, answer = ctx.Queue(), ctx.Queue()
    put_all(q, [1, 2, 3, None])
    process = ctx.Process(target=take_sum, args=(q, answer))
    process.start()
    q.close()
    assert answer.get() == 6
    process.join()


def test_simple_queue_closes(mp):
    q = mp.SimpleQueue()
    q.put(1)
    q.close()
    q.close()
    with pytest.raises(OSError, match="is closed"):
        q.empty()
    with pytest.raises(ValueError, match="is closed"):
        q.get()


def test_joinable_queue(ctx):
    q = ctx.JoinableQueue()
    with pytest.raises(ValueError, match="too many"):
        q.task_done()
    workers = [ctx.Process(target=work, args=(q,), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    put_range(q, 0, 200)
    q.join()
    assert q.empty()
    for worker in workers:
        worker.terminate()
        worker.join()


def test_a_queue_reaches_others_through_a_queue(ctx):
    carrier, handed, answer = ctx.Queue(), ctx.Queue(), ctx.Queue()
    carrier.put((answer, handed))
    process = ctx.Process(target=_use_carried, args=(carrier,))
    process.start()
    assert answer.get() == "done"
    assert handed.get() == "by a handle that came through a queue"
    process.join()


def _use_carried(carrier):
    send_through(*carrier.get())


def test_a_queue_lives_as_long_as_somebody_holds_it(ctx):
    answer, go = ctx.Queue(), ctx.Event()
    q = ctx.Queue()
    q.put("from a parent that has let go")
    process = ctx.Process(target=_take_later, args=(q, go, answer))
    process.start()
    del q
    go.set()
    assert answer.get() == "from a parent that has let go"
    process.join()


def _take_later(q, go, answer):
    go.wait()
    answer.put(q.get())


def test_arrays_come_out_of_band_and_writable(ctx):
    np = pytest.importorskip("numpy")
    there, back = ctx.Queue(), ctx.Queue()
    process = ctx.Process(target=check_arrays, args=(there, back))
    process.start()
    array = np.arange(60_000, dtype=np.float64).reshape(200, 300)
    there.put(array)
    writable, total, returned = back.get()
    process.join()
    assert writable and total == array.sum() + array.size
    assert np.array_equal(returned, array + 1) and returned.flags.f_contiguous
    assert array[0, 0] == 0, "the sender's array is its own"


def test_a_received_array_is_the_child_s_own_after_a_fork(mp):
    np = pytest.importorskip("numpy")
    ctx = mp.get_context("fork")
    q = ctx.Queue()
    q.put(np.zeros(100_000))
    array = q.get()
    process = ctx.Process(target=array.fill, args=(7,))
    process.start()
    process.join()
    assert array.sum() == 0
    array.fill(1)
    assert array.sum() == 100_000


def test_ctrl_c_ends_a_wait(mp):
    q = mp.Queue()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        q.get()
    timer.join()
    full = mp.Queue(1)
    full.put(1)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        full.put(2)
    timer.join()
    assert full.qsize() == 1


def test_memory_is_given_back(mp):
    from phalanx import _phalanx

    q = mp.Queue()
    blocks, _ = _phalanx.arena_usage()
    q.put_many([b"x" * 70_000, "y" * 30_000, list(range(1000))] * 50)
    del q
    assert _phalanx.arena_usage()[0] < blocks


def test_bad_arguments(mp):
    with pytest.raises(TypeError, match="maxsize"):
        mp.Queue("three")
    q = mp.Queue()
    with pytest.raises(TypeError, match="timeout"):
        q.get(timeout="soon")
    with pytest.raises(ValueError, match="NaN"):
        q.get(timeout=float("nan"))

    class Forgetful(Queue):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="Queue.__init__"):
        Forgetful().put(1)


def test_the_ends_that_libraries_reach_for(ctx):
    from phalanx.connection import wait
    from phalanx.reduction import ForkingPickler

    first, second = ctx.Queue(), ctx.SimpleQueue()
    assert wait([first._reader, second._reader], 0) == []
    process = ctx.Process(target=put_all, args=(second, ["a", {"b"}]))
    process.start()
    assert wait([first._reader, second._reader], 30) == [second._reader]
    assert second._reader.recv() == "a"
    assert second._reader.poll(30)
    assert ForkingPickler.loads(second._reader.recv_bytes()) == {"b"}
    process.join()
    assert not second._reader.poll() and wait([second._reader], 0) == []
    first._writer.send_bytes(ForkingPickler.dumps([1, 2]))
    first._writer.send((3,))
    assert wait([first._reader], 30) == [first._reader]
    assert first.get() == [1, 2]
    assert ForkingPickler.loads(first._reader.recv_bytes()) == (3,)
    second.close()
    assert second._reader.closed and second._writer.closed
    with pytest.raises(OSError, match="closed"):
        second._reader.fileno()


def test_asyncio_can_wait_for_a_queue(mp):
    import asyncio

    q = mp.Queue()

    async def main():
        loop = asyncio.get_running_loop()
        got = []
        done = asyncio.Event()

        def ready():
            got.append(q.get())
            if len(got) == 3:
                done.set()

        loop.add_reader(q._reader.fileno(), ready)
        q.put(1)
        loop.call_soon(q.put, 2)
        await asyncio.to_thread(q.put, 3)
        await done.wait()
        loop.remove_reader(q._reader.fileno())
        return got

    assert sorted(asyncio.run(main())) == [1, 2, 3]


def test_classes(mp):
    assert isinstance(mp.Queue(), Queue)
    assert isinstance(mp.JoinableQueue(), JoinableQueue) and issubclass(JoinableQueue, Queue)
    assert isinstance(mp.SimpleQueue(), SimpleQueue)


def put_numbers(queue, producer, count):
    for number in range(count):
        queue.put((producer, number))


def test_many_producers_keep_their_own_order(ctx):
    queue = ctx.Queue()
    producers = [ctx.Process(target=put_numbers, args=(queue, n, 500)) for n in range(3)]
    for producer in producers:
        producer.start()
    got = [queue.get() for _ in range(1500)]
    for producer in producers:
        producer.join()
    for n in range(3):
        assert [number for who, number in got if who == n] == list(range(500))
    assert queue.empty()


def test_wait_for_a_reading_end_never_lies(ctx):
    """A late doorbell must not announce an item that is gone: who polls would then sleep in get."""
    from phalanx.connection import wait

    queue, stop = ctx.SimpleQueue(), ctx.Event()
    process = ctx.Process(target=put_until, args=(queue, stop))
    process.start()
    for _ in range(2000):
        assert wait([queue._reader]) == [queue._reader]
        assert not queue.empty()
        queue.get()
    stop.set()
    process.join()


def put_until(queue, stop):
    number = 0
    while not stop.is_set():
        if queue.empty():
            queue.put(number)
            number += 1
