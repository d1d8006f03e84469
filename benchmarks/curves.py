"""What `make bench-scale` measures: things of which there may be many, or large ones.

A curve is a function of a context of multiprocessing and a size; it returns the seconds that took.
Ten times the size should cost ten times as much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

__all__ = ["CURVES", "Curve"]


@dataclass(frozen=True)
class Curve:
    """Something to measure at several sizes, and what the size counts."""

    name: str
    text: str
    of: str
    sizes: tuple[int, ...]
    run: Callable[[Any, int], float]


CURVES: dict[str, Curve] = {}


def _curve(
    text: str, of: str, *sizes: int
) -> Callable[[Callable[[Any, int], float]], Callable[[Any, int], float]]:
    def register(run: Callable[[Any, int], float]) -> Callable[[Any, int], float]:
        CURVES[run.__name__] = Curve(run.__name__, text, of, sizes, run)
        return run

    return register


@_curve("Items put into a queue, then taken out", "item", 10_000, 100_000, 1_000_000, 10_000_000)
def items(mp: Any, count: int) -> float:
    queue = mp.Queue()
    put, get = queue.put, queue.get
    start = time.perf_counter()
    for item in range(count):
        put(item)
    for _ in repeat(None, count):
        get()
    return time.perf_counter() - start


def _put_at_signal(queue: Any, gate: Any, count: int) -> None:
    gate.wait()
    for item in range(count):
        queue.put(item)


_EACH = 1_000


@_curve(f"Producers of {_EACH} items each, one consumer", "producer", 1, 4, 16, 64, 256)
def producers(mp: Any, count: int) -> float:
    queue, gate = mp.Queue(), mp.Event()
    started = [mp.Process(target=_put_at_signal, args=(queue, gate, _EACH)) for _ in range(count)]
    for process in started:
        process.start()
    time.sleep(0.2)  # they are all waiting
    start = time.perf_counter()
    gate.set()
    for _ in repeat(None, count * _EACH):
        queue.get()
    seconds = time.perf_counter() - start
    for process in started:
        process.join()
    return seconds


def _sum(gate: Any, total: Any) -> None:
    gate.wait()
    with total.get_lock():
        total.value += 1


@_curve("Processes that live at once: started, released, joined", "process", 10, 100, 1_000)
def processes(mp: Any, count: int) -> float:
    gate, total = mp.Event(), mp.Value("q", 0)
    start = time.perf_counter()
    started = [mp.Process(target=_sum, args=(gate, total)) for _ in range(count)]
    for process in started:
        process.start()
    gate.set()
    for process in started:
        process.join()
    seconds = time.perf_counter() - start
    assert total.value == count
    return seconds


def _put_bytes(queue: Any, megabytes: int) -> None:
    data = b"a" * (megabytes << 20)
    queue.put(b"ready")
    queue.put(data)


@_curve("One message through a queue", "MiB", 1, 16, 256, 1_024, 4_096)
def message(mp: Any, megabytes: int) -> float:
    queue = mp.Queue()
    sender = mp.Process(target=_put_bytes, args=(queue, megabytes))
    sender.start()
    queue.get()
    start = time.perf_counter()
    data = queue.get()
    seconds = time.perf_counter() - start
    sender.join()
    assert len(data) == megabytes << 20
    return seconds


def _double(item: int) -> int:
    return 2 * item


_CHUNK = 1_000


@_curve(
    f"Items of a lazy map by two workers, chunks of {_CHUNK}",
    "item",
    10_000,
    100_000,
    1_000_000,
    10_000_000,
)
def lazy_map(mp: Any, count: int) -> float:
    with mp.Pool(2) as pool:
        pool.map(_double, range(100))  # the workers are there
        start = time.perf_counter()
        total = sum(pool.imap_unordered(_double, range(count), _CHUNK))
        seconds = time.perf_counter() - start
    assert total == count * (count - 1)
    return seconds


@_curve("Single tasks of a lazy map by two workers", "task", 1_000, 10_000, 100_000, 1_000_000)
def lazy_tasks(mp: Any, count: int) -> float:
    with mp.Pool(2) as pool:
        pool.map(_double, range(100))
        start = time.perf_counter()
        total = sum(pool.imap(_double, range(count)))
        seconds = time.perf_counter() - start
    assert total == count * (count - 1)
    return seconds
