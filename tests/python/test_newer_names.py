"""What newer Pythons have added to multiprocessing is here on every version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from phalanx import dummy

LOCKS = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"]


@pytest.fixture(scope="module")
def manager(mp):
    with mp.Manager() as manager:
        yield manager


def report_locked(lock, answers):
    answers.put(lock.locked())


@pytest.mark.parametrize("name", LOCKS)
def test_locked(ctx, name):
    lock, answers = getattr(ctx, name)(), ctx.SimpleQueue()
    assert lock.locked() is False
    with lock:
        assert lock.locked() is True
        process = ctx.Process(target=report_locked, args=(lock, answers))
        process.start()
        assert answers.get() is True
        process.join()
    assert lock.locked() is False


@pytest.mark.parametrize("name", LOCKS)
def test_locked_of_a_proxy(manager, name):
    lock = getattr(manager, name)()
    assert lock.locked() is False
    with lock:
        assert lock.locked() is True
    assert lock.locked() is False


def test_locked_of_a_semaphore_with_several_permits(mp, manager):
    for semaphore in (mp.Semaphore(2), mp.BoundedSemaphore(2), manager.Semaphore(2)):
        semaphore.acquire()
        assert not semaphore.locked()
        semaphore.acquire()
        assert semaphore.locked()


def sleep_until_interrupted(ready):
    try:
        ready.set()
        signal.pause()
    except KeyboardInterrupt:
        sys.exit(7)


def test_interrupt(ctx):
    ready = ctx.Event()
    process = ctx.Process(target=sleep_until_interrupted, args=(ready,))
    with pytest.raises(AttributeError):
        process.interrupt()
    process.start()
    ready.wait()
    process.interrupt()
    process.join()
    assert process.exitcode == 7
    process.interrupt()  # it has ended already
    process.close()
    with pytest.raises(ValueError):
        process.interrupt()


def interrupt_me(ready):
    ready.set()
    signal.pause()


def test_interrupt_without_a_handler_ends_as_the_standard_library_does(ctx):
    process = ctx.Process(target=interrupt_me, args=(ready := ctx.Event(),))
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        process.start()
        ready.wait()
        process.interrupt()
        process.join()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
    assert process.exitcode == 1


def test_sets_of_a_manager(manager):
    numbers = manager.set([1, 2])
    numbers.add(3)
    numbers |= {4}
    assert numbers == {1, 2, 3, 4} and 3 in numbers and len(numbers) == 4
    assert sorted(numbers) == [1, 2, 3, 4]
    assert (numbers & {1, 9}, numbers - {1}, {9} | numbers) == ({1}, {2, 3, 4}, {1, 2, 3, 4, 9})


def test_dict_proxies(manager):
    d = manager.dict(a=1, b=2)
    assert list(reversed(d)) == ["b", "a"]
    assert d | {"c": 3} == {"a": 1, "b": 2, "c": 3} == {"a": 9, "b": 2, "c": 3} | d
    d |= {"b": 5}
    assert d.copy() == {"a": 1, "b": 5}
    assert d.fromkeys("xy", 1) == {"x": 1, "y": 1}
    assert dict(d) == {"a": 1, "b": 5}


def test_list_proxies(manager):
    numbers = manager.list([1, 2])
    copy = numbers.copy()
    numbers.clear()
    assert (copy, len(numbers)) == ([1, 2], 0)


# The proxies of 3.14, which call more methods by name, against a server of phalanx.
NEW_CALLS = {
    "dict": [
        ("__or__", ({2: 2},), {1: 1, 2: 2}),
        ("__ror__", ({2: 2},), {1: 1, 2: 2}),
        ("__ior__", ({3: 3},), {1: 1, 3: 3}),
        ("fromkeys", ([5],), {5: None}),
    ],
    "set": [
        ("__or__", ({2},), {1, 2}),
        ("__rsub__", ({1, 2},), {2}),
        ("__ixor__", ({1},), set()),
        ("__lt__", ({1},), True),
    ],
    "list": [("copy", (), [1]), ("clear", (), None)],
}


@pytest.mark.parametrize("typeid", NEW_CALLS)
def test_what_proxies_of_other_versions_call(manager, typeid):
    proxy = getattr(manager, typeid)({1: 1} if typeid == "dict" else [1])
    for method, args, answer in NEW_CALLS[typeid]:
        assert proxy._callmethod(method, args) == answer


def test_a_condition_over_any_lock(ctx):
    for lock in (ctx.Lock(), ctx.RLock(), ctx.Semaphore(1), ctx.BoundedSemaphore(1)):
        condition, answers = ctx.Condition(lock), ctx.SimpleQueue()
        process = ctx.Process(target=wait_for_news, args=(condition, answers))
        process.start()
        assert answers.get() == "waits"
        with condition:
            condition.notify()
        assert answers.get() is True
        process.join()
        assert not lock.locked()


def test_a_condition_over_any_lock_of_a_manager(manager):
    for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore"):
        condition = manager.Condition(getattr(manager, name)())
        with condition:
            assert condition.wait(0.01) is False
            condition.notify()
        assert not condition.locked()


def wait_for_news(condition, answers):
    with condition:
        answers.put("waits")
        answers.put(condition.wait())


def test_threads_have_the_same_names():
    assert dummy.Lock().locked() is False
    with dummy.Pool(1) as pool:
        assert list(pool.imap(abs, [-1, 2], buffersize=1)) == [1, 2]


def test_nothing_of_this_is_imported_early():
    program = "import sys, phalanx; phalanx.Queue; sys.exit('queue' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
