"""Not run: what a type checker has to make of programs that use phalanx."""

from __future__ import annotations

import ctypes
from typing import Any

from typing_extensions import assert_type

import phalanx as mp
from phalanx import sharedctypes
from phalanx.connection import Connection
from phalanx.managers import DictProxy, ListProxy, SetProxy, SyncManager, ValueProxy
from phalanx.pool import ApplyResult, MapResult, Pool, ThreadPool
from phalanx.queues import JoinableQueue, Queue, ShutDown, SimpleQueue
from phalanx.sharedctypes import Synchronized, SynchronizedArray, SynchronizedString
from phalanx.synchronize import Event, Lock


def length(text: str) -> int:
    return len(text)


def add(one: int, other: int) -> float:
    return one + other


def queues(
    numbers: Queue[int], words: JoinableQueue[str], pairs: SimpleQueue[tuple[int, str]]
) -> None:
    numbers.put(1, timeout=1.5)
    numbers.put("one")  # error: arg-type
    assert_type(numbers.get(), int)
    assert_type(numbers.get_nowait(), int)
    assert_type(numbers.get_many(10), list[int])
    assert_type(numbers.put_many(range(3)), int)
    words.put_nowait("one")
    words.put_nowait(1)  # error: arg-type
    assert_type(words.get(), str)
    words.task_done()
    assert_type(pairs.get(), tuple[int, str])
    numbers.shutdown(immediate=True)
    assert_type(numbers.is_shutdown, bool)
    pairs.shutdown()  # error: attr-defined


def pools(pool: Pool, threads: ThreadPool) -> None:
    assert_type(pool.map(length, ["a", "b"]), list[int])
    pool.map(length, [1, 2])  # error: arg-type
    assert_type(pool.starmap(add, [(1, 2)]), list[float])
    assert_type(pool.apply(add, (1, 2)), float)
    assert_type(pool.apply_async(add, (1, 2)), ApplyResult[float])
    assert_type(pool.apply_async(add, (1, 2)).get(timeout=1), float)
    assert_type(pool.map_async(length, ["a"]), MapResult[int])
    assert_type(pool.map_async(length, ["a"]).get(), list[int])
    assert_type(next(pool.imap(length, ["a"], buffersize=2)), int)
    assert_type(pool.imap_unordered(length, ["a"]).next(timeout=1), int)
    assert_type(list(threads.imap(length, ["a"])), list[int])
    with pool as same:
        assert_type(same, Pool)


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int))


def memory() -> None:
    number = mp.Value("i", 3)
    assert_type(number, Synchronized[int])
    assert_type(number.value, int)
    number.value = "three"  # error: assignment
    assert_type(number.get_obj().value, int)
    with number.get_lock():
        number.value += 1
    assert_type(mp.Value(ctypes.c_double, 0.5, lock=mp.Lock()), Synchronized[float])
    assert_type(mp.Value("i", lock=False).value, int)
    assert_type(mp.Value(ctypes.c_int, lock=False), ctypes.c_int)
    assert_type(mp.Value(ctypes.c_bool, lock=False), ctypes.c_bool)
    assert_type(mp.RawValue("d").value, float)
    assert_type(mp.RawValue(Point, 1, 2), Point)
    assert_type(mp.Value(Point, 1, 2, lock=False), Point)
    assert_type(mp.Value(Point, 1, 2).x, Any)
    numbers = mp.get_context("spawn").Array("d", 10)
    assert_type(numbers, SynchronizedArray[float])
    assert_type(numbers[0], float)
    assert_type(numbers[2:4], list[float])
    numbers[1] = "one"  # error: call-overload
    numbers[:2] = [1, 2.5]
    assert_type(list(numbers), list[float])
    assert_type(len(numbers), int)
    assert_type(mp.Array(ctypes.c_short, range(5))[0], int)
    assert_type(mp.Array("c", 10), SynchronizedString)
    assert_type(mp.Array("c", 10).value, bytes)
    assert_type(mp.Array("c", 10)[2:3], bytes)
    assert_type(mp.RawArray(Point, 3)[0], Point)
    assert_type(mp.Array(Point, 3, lock=False)[0], Point)
    assert_type(sharedctypes.Value("f", ctx=mp.get_context("fork")), Synchronized[float])
    assert_type(sharedctypes.synchronized(ctypes.c_int(3)), Synchronized[int])


def managers(manager: SyncManager) -> None:
    ages = manager.dict({"ada": 36})
    assert_type(ages, DictProxy[str, int])
    ages["bob"] = "old"  # error: assignment
    ages["bob"] = 7
    ages.update(eve=3)
    assert_type(ages["ada"], int)
    assert_type(ages.get("ada"), int | None)
    assert_type(ages.pop("bob", None), int | None)
    assert_type(ages.keys(), list[str])
    assert_type(ages.items(), list[tuple[str, int]])
    assert_type(ages.copy(), dict[str, int])
    assert_type(list(ages), list[str])
    assert_type(ages | {"zoe": 1}, dict[str, int])
    assert_type(manager.dict(a=1.5), DictProxy[str, float])
    assert_type(manager.dict([(1, "one")]), DictProxy[int, str])
    assert_type(manager.dict(), DictProxy[Any, Any])
    names = manager.list(["ada"])
    assert_type(names, ListProxy[str])
    names.append(3)  # error: arg-type
    names += ["bob"]
    names.sort(key=len)
    assert_type(names[0], str)
    assert_type(names[:2], list[str])
    assert_type(names.pop(), str)
    assert_type([name for name in names], list[str])  # noqa: C416
    assert_type(manager.set({1}), SetProxy[int])
    assert_type(manager.set({1}) & {2}, set[int])
    assert_type(manager.deque([1], maxlen=3).popleft(), int)
    words = manager.Counter(["a", "b"])
    words.update(["c"])
    assert_type(words.most_common(1), list[tuple[str, int]])
    assert_type(manager.defaultdict(int)["x"], int)
    assert_type(manager.OrderedDict([(1, "one")])[1], str)
    number = manager.Value("i", 3)
    assert_type(number, ValueProxy[int])
    number.value += 1
    number.set("one")  # error: arg-type
    assert_type(manager.Array("d", [0.5])[0], float)
    with manager.Lock() as taken:
        assert_type(taken, bool)
    assert_type(manager.Event().wait(1), bool)
    assert_type(manager.Barrier(2).n_waiting, int)
    with manager.Condition(manager.RLock()) as _:
        pass
    space = manager.Namespace(x=1)
    space.y = space.x
    manager.Queue(3).put(1)
    manager.Bag()  # error: attr-defined


def package() -> None:
    assert_type(mp.Queue(3), Queue[Any])
    assert_type(mp.Pipe(), tuple[Connection, Connection])
    assert_type(mp.Lock(), Lock)
    assert_type(mp.Event().wait(1), bool)
    assert_type(mp.Lock().locked(), bool)
    assert_type(mp.Manager(), SyncManager)
    assert_type(mp.cpu_count(), int)
    process = mp.Process(target=add, args=(1, 2), daemon=True)
    process.interrupt()
    assert_type(process.exitcode, int | None)
    context = mp.get_context("spawn")
    assert_type(context.Event(), Event)
    with mp.Pool(2) as pool:
        assert_type(pool.map(length, ["a"]), list[int])
    try:
        mp.Queue().get(timeout=0.1)
    except (ShutDown, mp.TimeoutError, mp.WorkerDied) as error:
        assert_type(error, ShutDown | mp.TimeoutError | mp.WorkerDied)
