"""What is measured: each workload written once, against the API of multiprocessing.

A workload is a function that takes a module (or a context of it) and returns one figure. It knows
nothing of who is measured, and this file imports nothing of phalanx: it is run by a fresh
interpreter for each rival, as the top-level module `workloads`, so that children of every start
method find its functions.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

__all__ = ["WORKLOADS", "Workload", "measure"]

_SECONDS = 0.2  # how long one measurement lasts at least
_WARM_UP = "ready"


@dataclass(frozen=True)
class Workload:
    """One thing to measure: what is called, in which unit, and what phalanx set out to reach."""

    name: str
    group: str
    text: str
    unit: str
    goal: float | None  # how many times as good as the standard library
    run: Callable[[Any], float]
    context: str | None = "fork"  # the start method; None: `run` takes the name of the module

    @property
    def less_is_better(self) -> bool:
        """True for times and sizes, False for rates."""
        return not self.unit.endswith("/s") or self.unit == "wake-ups/s"


WORKLOADS: dict[str, Workload] = {}


def _workload(
    group: str, text: str, unit: str, goal: float | None, context: str | None = "fork"
) -> Callable[[Callable[[Any], float]], Callable[[Any], float]]:
    def register(run: Callable[[Any], float]) -> Callable[[Any], float]:
        name = run.__name__
        WORKLOADS[name] = Workload(name, group, text, unit, goal, run, context)
        return run

    return register


def measure(module: Any, name: str) -> float:
    """The figure of workload `name` for `module`, which is a module or its name."""
    workload = WORKLOADS[name]
    if workload.context is None:
        return workload.run(module if isinstance(module, str) else module.__name__)
    if isinstance(module, str):
        module = __import__(module, fromlist=["get_context"])
    return workload.run(module.get_context(workload.context))


def _rate(run: Callable[[int], float], count: int) -> float:
    """Operations per second: `run(count)` says how many seconds `count` operations take."""
    run(count)  # what is slow once only: first pages, first imports, workers that start
    while True:
        seconds = run(count)
        if seconds >= _SECONDS:
            return count / seconds
        count = int(count * min(10, max(2, 1.3 * _SECONDS / max(seconds, 1e-6))))


def _start(mp: Any, target: Callable[..., object], *args: object) -> Any:
    process = mp.Process(target=target, args=args)
    process.start()
    return process


@contextmanager
def _busy_cores() -> Iterator[None]:
    """Every core has a process that never rests."""
    spinners = []
    for _ in range(len(os.sched_getaffinity(0))):
        pid = os.fork()
        if pid == 0:
            while True:
                pass
        spinners.append(pid)
    try:
        yield
    finally:
        for pid in spinners:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# Queues


def _put(queue: Any, item: Any, count: int) -> None:
    put = queue.put
    put(_WARM_UP)
    for _ in repeat(None, count):
        put(item)


def _put_array(queue: Any, size: int, count: int) -> None:
    import numpy

    _put(queue, numpy.ones(size, numpy.uint8), count)


def _through_queue(queue: Any, mp: Any, count: int, target: Any, item: Any) -> float:
    producer = _start(mp, target, queue, item, count)
    get = queue.get
    get()
    start = time.perf_counter()
    for _ in repeat(None, count):
        get()
    seconds = time.perf_counter() - start
    producer.join()
    return seconds


def _queue_rate(mp: Any, item: Any) -> float:
    return _rate(lambda count: _through_queue(mp.Queue(), mp, count, _put, item), 20_000)


@_workload("queue", "Queue, small ints, 1 producer, 1 consumer", "items/s", 40)
def queue_int(mp: Any) -> float:
    return _queue_rate(mp, 7)


@_workload("queue", "Queue, small tuples", "items/s", 30)
def queue_tuple(mp: Any) -> float:
    return _queue_rate(mp, (1, "two", 3.0))


@_workload("queue", "Queue, small dicts", "items/s", 15)
def queue_dict(mp: Any) -> float:
    return _queue_rate(mp, {"id": 1, "name": "two", "score": 3.0})


@_workload("queue", "Queue, 1 kB bytes", "items/s", 10)
def queue_1kb(mp: Any) -> float:
    return _queue_rate(mp, bytes(1024))


def _put_at_signal(queue: Any, gate: Any, count: int) -> None:
    gate.wait()
    put = queue.put
    for _ in repeat(None, count):
        put(7)


def _get(queue: Any, count: int) -> None:
    get = queue.get
    for _ in repeat(None, count):
        get()


@_workload("queue", "Queue, 2 producers, 2 consumers", "items/s", 30)
def queue_2p2c(mp: Any) -> float:
    def run(count: int) -> float:
        queue, gate = mp.Queue(), mp.Event()
        producers = [_start(mp, _put_at_signal, queue, gate, count // 2) for _ in range(2)]
        consumers = [_start(mp, _get, queue, count // 2) for _ in range(2)]
        time.sleep(0.02)  # they are all waiting
        start = time.perf_counter()
        gate.set()
        for consumer in consumers:
            consumer.join()
        seconds = time.perf_counter() - start
        for producer in producers:
            producer.join()
        return seconds

    return _rate(run, 20_000)


@_workload("queue", "Queue, 64 producers, 1 consumer", "items/s", 10)
def queue_64p1c(mp: Any) -> float:
    queue, gate = mp.Queue(), mp.Event()
    producers = [_start(mp, _put_at_signal, queue, gate, 1000) for _ in range(64)]
    time.sleep(0.1)
    start = time.perf_counter()
    gate.set()
    _get(queue, 64_000)
    seconds = time.perf_counter() - start
    for producer in producers:
        producer.join()
    return 64_000 / seconds


@_workload("queue", "Queue, 8 MB array", "arrays/s", 30)
def queue_array_8mb(mp: Any) -> float:
    return _rate(lambda n: _through_queue(mp.Queue(8), mp, n, _put_array, 8_000_000), 20)


def _put_batches(queue: Any, count: int) -> None:
    batch = list(range(100))
    for _ in repeat(None, count // 100):
        if hasattr(queue, "put_many"):
            queue.put_many(batch)
        else:
            for item in batch:
                queue.put(item)


@_workload("queue", "Queue, batches of 100 (put_many, get_many)", "items/s", None)
def queue_batches(mp: Any) -> float:
    def run(count: int) -> float:
        queue = mp.Queue()
        count -= count % 100
        producer = _start(mp, _put_batches, queue, count)
        left = count - 1
        queue.get()
        start = time.perf_counter()
        if hasattr(queue, "get_many"):
            while left:
                left -= len(queue.get_many(100))
        else:
            _get(queue, left)
        seconds = time.perf_counter() - start
        producer.join()
        return seconds

    return _rate(run, 20_000)


def _note_latency(take: Callable[[], float], tell: Any, count: int) -> None:
    latencies = []
    for _ in range(count):
        sent = take()
        latencies.append(time.perf_counter() - sent)
    tell.send(latencies)


def _wake_up(mp: Any, give: Callable[[float], object], take: Callable[[], float]) -> float:
    """Microseconds from the call of `give` until a sleeping `take` has returned; the median."""
    count = 60
    listen, tell = mp.Pipe(False)
    sleeper = _start(mp, _note_latency, take, tell, count)
    for _ in range(count):
        time.sleep(0.004)  # long enough for it to sleep, and for its spinning to be over
        give(time.perf_counter())
    latencies: list[float] = listen.recv()
    sleeper.join()
    return statistics.median(latencies) * 1e6


@_workload("queue", "Queue, wake-up of a sleeping get", "µs", 4)
def queue_wake_up(mp: Any) -> float:
    queue = mp.Queue()
    queue.put(0.0)
    queue.get()
    return _wake_up(mp, queue.put, queue.get)


# Pipes


def _send(writer: Any, item: Any, count: int) -> None:
    send = writer.send
    send(_WARM_UP)
    for _ in repeat(None, count):
        send(item)


def _send_big(writer: Any, size: int, count: int) -> None:
    data = bytes(size)
    for _ in repeat(None, count + 1):
        writer.send_bytes(data)


def _send_array(writer: Any, size: int, count: int) -> None:
    import numpy

    _send(writer, numpy.ones(size, numpy.uint8), count)


def _through_pipe(mp: Any, count: int, target: Any, item: Any, method: str = "recv") -> float:
    reader, writer = mp.Pipe(False)
    sender = _start(mp, target, writer, item, count)
    take = getattr(reader, method)
    take()
    start = time.perf_counter()
    for _ in repeat(None, count):
        take()
    seconds = time.perf_counter() - start
    sender.join()
    return seconds


@_workload("pipe", "Pipe, one way, small ints", "items/s", 20)
def pipe_one_way(mp: Any) -> float:
    return _rate(lambda count: _through_pipe(mp, count, _send, 7), 20_000)


@_workload("pipe", "Pipe, messages of 64 MiB", "MB/s", 15)
def pipe_64mib(mp: Any) -> float:
    size = 64 << 20
    return size / 1e6 * _rate(lambda n: _through_pipe(mp, n, _send_big, size, "recv_bytes"), 4)


@_workload("pipe", "Pipe, 8 MB array", "arrays/s", 30)
def pipe_array_8mb(mp: Any) -> float:
    return _rate(lambda count: _through_pipe(mp, count, _send_array, 8_000_000), 20)


def _echo(connection: Any, count: int) -> None:
    recv, send = connection.recv, connection.send
    for _ in repeat(None, count):
        send(recv())


def _pipe_round_trips(mp: Any, count: int) -> float:
    here, there = mp.Pipe()
    echo = _start(mp, _echo, there, count + 1)
    send, recv = here.send, here.recv
    send(7)
    recv()
    start = time.perf_counter()
    for _ in repeat(None, count):
        send(7)
        recv()
    seconds = time.perf_counter() - start
    echo.join()
    return seconds


@_workload("pipe", "Pipe, round trips, cores free", "trips/s", 15)
def pipe_round_trip(mp: Any) -> float:
    return _rate(partial(_pipe_round_trips, mp), 2_000)


@_workload("pipe", "Pipe, round trips, cores busy", "trips/s", 1.5)
def pipe_round_trip_busy(mp: Any) -> float:
    with _busy_cores():
        return _rate(partial(_pipe_round_trips, mp), 2_000)


@_workload("pipe", "Pipe, wake-up of a sleeping recv", "µs", 4)
def pipe_wake_up(mp: Any) -> float:
    reader, writer = mp.Pipe(False)
    return _wake_up(mp, writer.send, reader.recv)


# Pools


def _same(item: Any) -> Any:
    return item


def _pool_rate(mp: Any, run: Callable[[Any, int], object], count: int) -> float:
    with mp.Pool(2) as pool:
        pool.map(_same, range(100))  # the workers are there

        def timed(count: int) -> float:
            start = time.perf_counter()
            run(pool, count)
            return time.perf_counter() - start

        return _rate(timed, count)


@_workload("pool", "Pool.map, trivial tasks, chunksize=1", "tasks/s", 12)
def pool_map_chunk1(mp: Any) -> float:
    return _pool_rate(mp, lambda pool, n: pool.map(_same, range(n), chunksize=1), 5_000)


@_workload("pool", "Pool.map, trivial tasks, default chunks", "tasks/s", 1.5)
def pool_map(mp: Any) -> float:
    return _pool_rate(mp, lambda pool, n: pool.map(_same, range(n)), 200_000)


@_workload("pool", "Pool.imap_unordered, trivial tasks", "tasks/s", 12)
def pool_imap_unordered(mp: Any) -> float:
    def run(pool: Any, count: int) -> None:
        for _ in pool.imap_unordered(_same, range(count)):
            pass

    return _pool_rate(mp, run, 5_000)


@_workload("pool", "Pool.apply_async, a burst", "tasks/s", 12)
def pool_apply_async(mp: Any) -> float:
    def run(pool: Any, count: int) -> None:
        for result in [pool.apply_async(_same, (7,)) for _ in range(count)]:
            result.get()

    return _pool_rate(mp, run, 5_000)


def _apply(pool: Any, count: int) -> None:
    for _ in repeat(None, count):
        pool.apply(_same, (7,))


@_workload("pool", "Pool.apply, one in flight, cores free", "calls/s", 30)
def pool_apply(mp: Any) -> float:
    return _pool_rate(mp, _apply, 1_000)


@_workload("pool", "Pool.apply, one in flight, cores busy", "calls/s", 8)
def pool_apply_busy(mp: Any) -> float:
    with _busy_cores():
        return _pool_rate(mp, _apply, 1_000)


def _length(array: Any) -> int:
    return len(array)


def _array(size: int) -> Any:
    import numpy

    return numpy.ones(size, numpy.uint8)


@_workload("pool", "Pool.map, 4 MB arrays there", "arrays/s", 8)
def pool_arrays_there(mp: Any) -> float:
    arrays = [_array(4_000_000) for _ in range(8)]  # one alone might be sent once
    return _pool_rate(mp, lambda pool, n: pool.map(_length, arrays * (n // 8), chunksize=1), 24)


@_workload("pool", "Pool.map, 4 MB arrays back", "arrays/s", 8)
def pool_arrays_back(mp: Any) -> float:
    def run(pool: Any, count: int) -> None:
        for _ in pool.imap(_array, repeat(4_000_000, count)):
            pass

    return _pool_rate(mp, run, 20)


def _first(constant: bytes, item: int) -> int:
    return constant[item % len(constant)]


@_workload("pool", "Pool.map, a partial that holds 50 MB", "tasks/s", 50)
def pool_constant_50mb(mp: Any) -> float:
    # Once, not as a rate over ever more tasks: what it costs to send it is part of the figure.
    with mp.Pool(2) as pool:
        pool.map(_same, range(100))
        task = partial(_first, os.urandom(8) * 6_250_000)
        start = time.perf_counter()
        pool.map(task, range(64), 1)
        return 64 / (time.perf_counter() - start)


@_workload("pool", "Pool, create and close", "pools/s", 3)
def pool_create(mp: Any) -> float:
    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            pool = mp.Pool(2)
            pool.close()
            pool.join()
        return time.perf_counter() - start

    return _rate(run, 5)


# Starts


def _start_rate(mp: Any) -> float:
    # The child runs a built-in function, so that it has nothing of this file to import.
    _start(mp, int).join()

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            _start(mp, int).join()
        return time.perf_counter() - start

    return _rate(run, 5)


@_workload("start", "fork, start and join", "starts/s", 1)
def start_fork(mp: Any) -> float:
    return _start_rate(mp)


@_workload("start", "forkserver, start and join", "starts/s", 15, "forkserver")
def start_forkserver(mp: Any) -> float:
    return _start_rate(mp)


@_workload("start", "spawn, start and join", "starts/s", 2.5, "spawn")
def start_spawn(mp: Any) -> float:
    return _start_rate(mp)


# Managers


def _loop(operation: Callable[[], object], count: int) -> float:
    """A rate of something that happens in this process and in a server."""

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, count):
            operation()
        return time.perf_counter() - start

    return _rate(run, count)


@_workload("manager", "Manager().dict(), set and get", "pairs/s", 5)
def manager_dict(mp: Any) -> float:
    with mp.Manager() as manager:
        shared = manager.dict()

        def operation() -> None:
            shared["a"] = 1
            shared["a"]

        return _loop(operation, 500)


@_workload("manager", "Manager().list(), append", "appends/s", 5)
def manager_list(mp: Any) -> float:
    with mp.Manager() as manager:
        append = manager.list().append
        return _loop(lambda: append(1), 500)


@_workload("manager", "Manager().Queue(), put and get", "pairs/s", 5)
def manager_queue(mp: Any) -> float:
    with mp.Manager() as manager:
        queue = manager.Queue()

        def operation() -> None:
            queue.put(1)
            queue.get()

        return _loop(operation, 500)


@_workload("manager", "Manager().Lock(), acquire and release", "pairs/s", 5)
def manager_lock(mp: Any) -> float:
    with mp.Manager() as manager:
        lock = manager.Lock()

        def operation() -> None:
            lock.acquire()
            lock.release()

        return _loop(operation, 500)


# Locks and values


def _acquire_release(lock: Any, count: int) -> float:
    acquire, release = lock.acquire, lock.release
    start = time.perf_counter()
    for _ in repeat(None, count):
        acquire()
        release()
    return time.perf_counter() - start


@_workload("sync", "Lock, acquire and release", "pairs/s", 1)
def lock_pair(mp: Any) -> float:
    return _rate(partial(_acquire_release, mp.Lock()), 500_000)


@_workload("sync", "RLock, acquire and release", "pairs/s", 1)
def rlock_pair(mp: Any) -> float:
    return _rate(partial(_acquire_release, mp.RLock()), 500_000)


@_workload("sync", "Semaphore, acquire and release", "pairs/s", 1)
def semaphore_pair(mp: Any) -> float:
    return _rate(partial(_acquire_release, mp.Semaphore(1)), 500_000)


@_workload("sync", "with lock", "times/s", 2)
def lock_with(mp: Any) -> float:
    lock = mp.Lock()

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, count):
            with lock:
                pass
        return time.perf_counter() - start

    return _rate(run, 200_000)


def _at_signal(gate: Any, work: Callable[..., object], *args: object) -> None:
    gate.wait()
    work(*args)


def _by_two(mp: Any, work: Callable[..., object], shared: Any, count: int) -> float:
    """Seconds for two processes that each do `work(shared, count / 2)`."""
    gate = mp.Event()
    workers = [_start(mp, _at_signal, gate, work, shared, count // 2) for _ in range(2)]
    time.sleep(0.01)
    start = time.perf_counter()
    gate.set()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


@_workload("sync", "Lock, two processes", "pairs/s", 1)
def lock_contended(mp: Any) -> float:
    return _rate(partial(_by_two, mp, _acquire_release, mp.Lock()), 500_000)


def _answer_events(ping: Any, pong: Any, count: int) -> None:
    for _ in repeat(None, count):
        ping.wait()
        ping.clear()
        pong.set()


def _event_round_trips(mp: Any, count: int) -> float:
    ping, pong = mp.Event(), mp.Event()
    other = _start(mp, _answer_events, ping, pong, count)
    start = time.perf_counter()
    for _ in repeat(None, count):
        ping.set()
        pong.wait()
        pong.clear()
    seconds = time.perf_counter() - start
    other.join()
    return seconds


@_workload("sync", "Event ping-pong, cores free", "trips/s", 8)
def event_round_trip(mp: Any) -> float:
    return _rate(partial(_event_round_trips, mp), 4_000)


@_workload("sync", "Event ping-pong, cores busy", "trips/s", 1.5)
def event_round_trip_busy(mp: Any) -> float:
    with _busy_cores():
        return _rate(partial(_event_round_trips, mp), 2_000)


def _take_turns(condition: Any, turn: Any, me: int, count: int) -> None:
    for _ in repeat(None, count):
        with condition:
            while turn.value != me:
                condition.wait()
            turn.value = 1 - me
            condition.notify()


def _condition_round_trips(mp: Any, count: int) -> float:
    condition, turn = mp.Condition(), mp.RawValue("i", 0)
    other = _start(mp, _take_turns, condition, turn, 1, count)
    start = time.perf_counter()
    _take_turns(condition, turn, 0, count)
    seconds = time.perf_counter() - start
    other.join()
    return seconds


@_workload("sync", "Condition ping-pong, cores free", "trips/s", 8)
def condition_round_trip(mp: Any) -> float:
    return _rate(partial(_condition_round_trips, mp), 4_000)


@_workload("sync", "Condition ping-pong, cores busy", "trips/s", 1.5)
def condition_round_trip_busy(mp: Any) -> float:
    with _busy_cores():
        return _rate(partial(_condition_round_trips, mp), 2_000)


def _meet(barrier: Any, count: int) -> None:
    for _ in repeat(None, count):
        barrier.wait()


@_workload("sync", "Barrier of two", "rounds/s", 8)
def barrier_round(mp: Any) -> float:
    def run(count: int) -> float:
        barrier = mp.Barrier(2)
        other = _start(mp, _meet, barrier, count)
        start = time.perf_counter()
        _meet(barrier, count)
        seconds = time.perf_counter() - start
        other.join()
        return seconds

    return _rate(run, 2_000)


def _increment(value: Any, count: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, count):
        with value.get_lock():
            value.value += 1
    return time.perf_counter() - start


@_workload("sync", "Value, += 1 under its lock", "times/s", 2.5)
def value_increment(mp: Any) -> float:
    return _rate(partial(_increment, mp.Value("i", 0)), 100_000)


@_workload("sync", "Value, += 1 under its lock, two processes", "times/s", 4)
def value_increment_2p(mp: Any) -> float:
    return _rate(partial(_by_two, mp, _increment, mp.Value("i", 0)), 100_000)


@_workload("sync", "Array, read and write of an item", "pairs/s", 25)
def array_index(mp: Any) -> float:
    array = mp.Array("i", 100)

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, count):
            array[5] = array[6]
        return time.perf_counter() - start

    return _rate(run, 50_000)


@_workload("sync", "Array, slice of 1000 written and read", "pairs/s", 3)
def array_slice(mp: Any) -> float:
    array = mp.Array("i", 1000)
    numbers = list(range(1000))

    def run(count: int) -> float:
        start = time.perf_counter()
        for _ in repeat(None, count):
            array[:] = numbers
            array[:]
        return time.perf_counter() - start

    return _rate(run, 1_000)


# Costs of being there


def _python_ms(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - start) * 1e3


def _over_bare_ms(code: str) -> float:
    """Milliseconds that an interpreter takes for `code`, less those of one that does nothing."""
    _python_ms(code)  # its bytecode is on disk
    rounds = [(_python_ms(code), _python_ms("pass")) for _ in range(12)]
    with_code, bare = zip(*rounds)
    over: float = min(with_code) - min(bare)
    return max(over, 0.01)


@_workload("cost", "import, over a bare interpreter", "ms", 2, None)
def import_ms(name: str) -> float:
    return _over_bare_ms(f"import {name}")


@_workload("cost", "import, and first Queue, Pipe and Value", "ms", 3, None)
def import_and_use_ms(name: str) -> float:
    return _over_bare_ms(
        f"import {name} as mp; q = mp.Queue(); p = mp.Pipe(); v = mp.Value('i', 0); "
        "q.put(1); q.get(); import os; os._exit(0)"
    )


def _switches(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/status") as status:
                total += sum(
                    int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt")
                )
    return total


@_workload("cost", "idle pool of two", "wake-ups/s", None)
def idle_pool(mp: Any) -> float:
    with mp.Pool(2) as pool:
        pool.map(_same, range(100))
        time.sleep(0.3)
        pids = [os.getpid(), *(process.pid for process in pool._pool)]
        before = _switches(pids)
        time.sleep(1)
        return max(0, _switches(pids) - before - 1)  # this process slept once


def _pss_kib(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def _idle_worker(mp: Any) -> float:
    with mp.Pool(2) as pool:
        pool.map(_same, range(100))
        time.sleep(0.1)
        return statistics.mean(_pss_kib(process.pid) for process in pool._pool)


@_workload("cost", "memory of an idle worker, forkserver", "KiB", 1, "forkserver")
def idle_worker_forkserver(mp: Any) -> float:
    return _idle_worker(mp)


@_workload("cost", "memory of an idle worker, spawn", "KiB", 1, "spawn")
def idle_worker_spawn(mp: Any) -> float:
    return _idle_worker(mp)
