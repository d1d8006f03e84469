"""Queue, JoinableQueue and SimpleQueue."""

from __future__ import annotations

import pickle
import queue as standard
import threading
import time

import pytest

THINGS = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    -(2**63),
    2**63,
    10**40,
    0.5,
    float("inf"),
    "",
    "text",
    "größer 漢字 \U0001f600",
    b"",
    b"bytes" * 1000,
    (),
    (1, "two", 3.0, None),
    ((1, 2), (3, (4,))),
    [1, [2]],
    {"a": {"b": ()}},
    {1, 2},
    ValueError("an error"),
    range(3),
    bytearray(b"x" * (1 << 20)),
    "\ud800",
]


def put_numbers(queue, producer, count):
    for number in range(count):
        queue.put((producer, number))


def move(source, target):
    while (item := source.get()) is not None:
        target.put(item)


def put_late(queue, event):
    event.wait()
    queue.put("late")


def finish_tasks(queue, count):
    for _ in range(count):
        queue.get()
        queue.task_done()


def fill_and_leave(queue, size):
    queue.put(bytes(size))


@pytest.fixture(params=["Queue", "JoinableQueue", "SimpleQueue"])
def any_queue(request, ctx):
    return getattr(ctx, request.param)()


def test_smoke(any_queue):
    any_queue.put(1)
    assert any_queue.get() == 1
    assert any_queue.empty()


def test_every_kind_of_thing(mp):
    queue = mp.Queue()
    for thing in THINGS:
        queue.put(thing)
    for thing in THINGS:
        got = queue.get()
        assert type(got) is type(thing)
        assert repr(got) == repr(thing)
    assert queue.empty()


def test_subclasses_of_builtin_types_stay_what_they_are(mp):
    import collections
    import enum

    Point = collections.namedtuple("Point", "x y")
    globals()["Point"], Point.__qualname__ = Point, "Point"
    Color = enum.IntEnum("Color", "RED GREEN", module=__name__)
    globals()["Color"] = Color
    queue = mp.Queue()
    for thing in (Point(1, 2), Color.RED, collections.OrderedDict(a=1)):
        queue.put(thing)
        got = queue.get()
        assert type(got) is type(thing)
        assert got == thing


def test_order_is_that_of_the_puts(mp):
    queue = mp.Queue()
    for number in range(10_000):
        queue.put(number)
    assert [queue.get() for _ in range(10_000)] == list(range(10_000))


def test_sizes_are_exact(mp):
    queue = mp.Queue(3)
    for number in range(3):
        assert (queue.qsize(), queue.empty(), queue.full()) == (number, number == 0, False)
        queue.put(number)
    assert (queue.qsize(), queue.full()) == (3, True)
    with pytest.raises(standard.Full):
        queue.put_nowait(4)
    start = time.monotonic()
    with pytest.raises(standard.Full):
        queue.put(4, timeout=0.1)
    assert time.monotonic() - start >= 0.1
    assert [queue.get_nowait() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    start = time.monotonic()
    with pytest.raises(standard.Empty):
        queue.get(True, 0.1)
    assert time.monotonic() - start >= 0.1


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


def test_producers_and_consumers_lose_and_double_nothing(ctx):
    source, target = ctx.Queue(10), ctx.Queue()
    movers = [ctx.Process(target=move, args=(source, target)) for _ in range(2)]
    for mover in movers:
        mover.start()
    threads = [threading.Thread(target=put_numbers, args=(source, n, 300)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in movers:
        source.put(None)
    for mover in movers:
        mover.join()
    assert target.qsize() == 600
    got = sorted(target.get() for _ in range(600))
    assert got == [(who, number) for who in range(2) for number in range(300)]


def test_get_sleeps_until_something_comes(ctx):
    queue, event = ctx.Queue(), ctx.Event()
    process = ctx.Process(target=put_late, args=(queue, event))
    process.start()
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.1)
    event.set()
    assert queue.get() == "late"
    process.join()


@pytest.mark.parametrize("size", [10, 100_000, 10_000_000])
def test_filled_by_a_process_that_has_ended(ctx, size):
    queue = ctx.Queue()
    process = ctx.Process(target=fill_and_leave, args=(queue, size))
    process.start()
    process.join()
    assert queue.get(timeout=60) == bytes(size)


def test_join_waits_for_all_tasks(ctx):
    queue = ctx.JoinableQueue()
    for number in range(20):
        queue.put(number)
    workers = [ctx.Process(target=finish_tasks, args=(queue, 10)) for _ in range(2)]
    for worker in workers:
        worker.start()
    queue.join()
    assert queue.empty()
    for worker in workers:
        worker.join()
    with pytest.raises(ValueError):
        queue.task_done()


def test_sent_through_another_queue(mp):
    outer, inner = mp.Queue(), mp.Queue()
    outer.put(inner)
    twin = outer.get()
    inner.put("through the first")
    assert twin.get() == "through the first"
    assert pickle.loads(pickle.dumps(inner)).empty()


def test_close_and_join_thread(mp):
    queue = mp.Queue()
    queue.put(1)
    queue.cancel_join_thread()
    queue.close()
    queue.join_thread()
    queue.close()
    with pytest.raises(ValueError):
        queue.put(2)


def test_threads_share_a_queue(mp):
    queue = mp.Queue(5)
    got: list[int] = []

    def consume():
        while (item := queue.get()) is not None:
            got.append(item)

    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for consumer in consumers:
        consumer.start()
    for number in range(1000):
        queue.put(number)
    for _ in consumers:
        queue.put(None)
    for consumer in consumers:
        consumer.join()
    assert sorted(got) == list(range(1000))


def test_simple_queue_closes(mp):
    queue = mp.SimpleQueue()
    queue.put(1)
    queue.close()
    queue.close()
    with pytest.raises(OSError):
        queue.empty()


def test_arrays_arrive_writable_and_private(mp):
    import numpy as np

    queue = mp.Queue()
    sent = np.arange(1_000_000, dtype=np.float64)
    queue.put(sent)
    queue.put(sent)
    first, second = queue.get(), queue.get()
    first[0] = -1
    assert sent[0] == 0
    assert second[0] == 0
    assert (first[1:] == sent[1:]).all()
    assert (second == sent).all()


def test_what_was_read_outlives_the_queue(mp):
    import gc

    import numpy as np

    queue = mp.Queue()
    queue.put(np.full(100_000, 7))
    array = queue.get()
    queue.close()
    del queue
    gc.collect()
    other = mp.Queue()
    for _ in range(10):
        other.put(np.zeros(100_000, dtype=np.int64))
    assert (array == 7).all()


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
