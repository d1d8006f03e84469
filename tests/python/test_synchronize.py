"""Locks, semaphores, conditions, events and barriers, between processes and threads."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import os
import pickle
import signal
import sys
import threading
import time
import warnings
import weakref

import pytest

KINDS = ["Lock", "RLock", "Semaphore", "BoundedSemaphore"]


def in_children(ctx, count, target, *args):
    children = [ctx.Process(target=target, args=args) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * count


def timed(function, *args, **kwargs):
    begin = time.monotonic()
    result = function(*args, **kwargs)
    return result, time.monotonic() - begin


# What every lock and semaphore does


@pytest.mark.parametrize("kind", KINDS)
def test_acquire_returns_true_and_false(mp, kind):
    lock = getattr(mp, kind)()
    assert lock.acquire() is True
    if kind == "RLock":
        assert lock.acquire(False) is True
        lock.release()
    else:
        assert lock.acquire(False) is False
        assert lock.acquire(block=0, timeout=30) is False
        assert lock.acquire(timeout=-1) is False
        got, took = timed(lock.acquire, True, 0.05)
        assert got is False and took >= 0.05
    lock.release()
    with lock as entered:
        assert entered is True
        assert lock.locked()
    assert not lock.locked()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_timeouts_are_refused(mp, kind):
    lock = getattr(mp, kind)()
    for timeout, error in [("1", TypeError), (float("nan"), ValueError)]:
        with pytest.raises(error, match="timeout"):
            lock.acquire(timeout=timeout)
    assert lock.acquire(timeout=float("inf"))
    lock.release()


@pytest.mark.parametrize("kind, error", [("Lock", ValueError), ("RLock", AssertionError)])
def test_releasing_what_is_free(mp, kind, error):
    lock = getattr(mp, kind)()
    with pytest.raises(error, match=f"this {kind} is not held"):
        lock.release()
    with lock:
        pass
    with pytest.raises(error):
        lock.release()


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_handler_runs_during_the_wait_and_may_end_it(mp, kind):
    lock = getattr(mp, kind)()
    held = threading.Event()
    done = threading.Event()

    def hold():
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    calls = []

    def handler(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        assert len(calls) == 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        done.set()
        thread.join()
    with lock:
        pass


def add(lock, value, turns):
    for _ in range(turns):
        with lock:
            value.value += 1


@pytest.mark.parametrize("kind", KINDS)
def test_excludes(ctx, kind):
    lock, value = getattr(ctx, kind)(), ctx.RawValue("i")
    in_children(ctx, 3, add, lock, value, 500)
    assert value.value == 1500


def release_it(lock):
    lock.release()


@pytest.mark.parametrize("kind", ["Lock", "Semaphore", "BoundedSemaphore"])
def test_another_process_may_release(ctx, kind):
    lock = getattr(ctx, kind)()
    lock.acquire()
    in_children(ctx, 1, release_it, lock)
    assert lock.acquire(timeout=60)


def fail_to_release(lock):
    with pytest.raises(AssertionError, match="not held by this thread"):
        lock.release()
    assert not lock.acquire(False)


def test_nobody_else_may_release_an_rlock(ctx):
    lock = ctx.RLock()
    with lock:
        in_children(ctx, 1, fail_to_release, lock)
        thread = threading.Thread(target=fail_to_release, args=(lock,))
        thread.start()
        thread.join()
        assert lock.acquire()
        lock.release()
        assert lock.locked()
    assert not lock.locked()


def test_representations(mp):
    lock, rlock = mp.Lock(), mp.RLock()
    assert repr(lock) == "<Lock(owner=None)>"
    assert repr(rlock) == "<RLock(None, 0)>"
    with lock, rlock, rlock:
        assert repr(lock) == "<Lock(owner=MainProcess)>"
        assert repr(rlock) == "<RLock(MainProcess, 2)>"
        seen = []
        thread = threading.Thread(target=lambda: seen.append((repr(lock), repr(rlock))))
        thread.start()
        thread.join()
        assert seen == [("<Lock(owner=SomeOtherThread)>", "<RLock(SomeOtherThread, nonzero)>")]
    assert repr(mp.Semaphore(3)) == "<Semaphore(value=3)>"
    assert repr(mp.BoundedSemaphore(3)) == "<BoundedSemaphore(value=3, maxvalue=3)>"
    assert repr(mp.Condition()) == "<Condition(<RLock(None, 0)>, 0)>"
    assert " unset>" in repr(mp.Event())
    assert repr(mp.Barrier(2)).endswith(": waiters=0/2>")


def look_at(lock, connection):
    connection.send(repr(lock))


def test_representation_of_another_process_s_lock(ctx):
    lock, (here, there) = ctx.Lock(), ctx.Pipe()
    with lock:
        in_children(ctx, 1, look_at, lock, there)
    assert here.recv() == "<Lock(owner=SomeOtherProcess)>"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_as_semlock(mp, kind):
    lock = getattr(mp, kind)()
    assert isinstance(lock, mp.synchronize.SemLock)
    view = lock._semlock
    assert (view._get_value(), view._is_zero()) == (1, False)
    assert view.acquire(timeout=1)
    assert (view._get_value(), view._is_zero()) == (0, True)
    if "Sem" not in kind:
        assert view._is_mine() and view._count() == 1
    view.release()
    limit = mp.synchronize.SEM_VALUE_MAX if kind == "Semaphore" else 1
    assert view.kind == (0 if kind == "RLock" else 1) and view.maxvalue == limit
    assert isinstance(view.handle, int) and view.name is None
    assert mp.synchronize.SemLock._make_name().startswith("/mp")


def test_a_subclass_may_have_any_constructor_but_must_call_the_base(mp):
    class Named(mp.synchronize.Lock):
        def __init__(self, name):
            super().__init__(ctx=mp.get_context())
            self.name = name

    class Empty(mp.synchronize.Lock):
        def __init__(self):
            pass

    with Named("x") as entered:
        assert entered
    with pytest.raises(RuntimeError, match="this Lock was not initialised"):
        Empty().acquire()
    with pytest.raises(RuntimeError, match="initialised already"):
        Named("x").__init__("y")


# Pickling


class Spawning:
    """As if a child was being started: what pickles of shared objects look for."""

    def __init__(self, mp):
        self.context = mp.context

    def __enter__(self):
        self.context.set_spawning_popen(self)

    def __exit__(self, *_):
        self.context.set_spawning_popen(None)


def test_a_lock_of_the_fork_context_is_not_for_spawned_processes(mp):
    lock = mp.get_context("fork").Lock()
    with Spawning(mp), pytest.raises(RuntimeError, match="A SemLock created in a fork"):
        pickle.dumps(lock)
    other = mp.get_context("spawn").Lock()
    with Spawning(mp):
        pickle.dumps(other)


def test_a_lock_goes_through_a_queue(ctx):
    queue, lock = ctx.Queue(), ctx.Lock()
    queue.put(lock)
    again = queue.get()
    with lock:
        assert not again.acquire(False)
    assert again.acquire(False)
    assert copy.copy(lock)._semlock.handle == lock._semlock.handle


def test_a_handle_of_another_family_or_of_another_kind_is_refused(mp):
    lock = mp.Lock()
    family, handle = lock._handle_for_pickle()
    blank = mp.synchronize.Event.__new__(mp.synchronize.Event)
    with pytest.raises(RuntimeError, match="another family"):
        blank._attach(family ^ 2, handle)
    with pytest.raises((RuntimeError, ValueError), match="names a Lock, not a Event"):
        blank._attach(family, handle)
    del lock
    again = mp.synchronize.Lock.__new__(mp.synchronize.Lock)
    with pytest.raises(RuntimeError, match="gone"):
        again._attach(family, handle)


# Abandoned locks


def acquire_and_exit(lock):
    lock.acquire()
    os._exit(0)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_polled_lock_is_taken_over_too(mp, ctx, kind):
    lock = getattr(ctx, kind)()
    in_children(ctx, 1, acquire_and_exit, lock)
    with pytest.warns(mp.AbandonedLockWarning, match=f"this {kind} was abandoned"):
        while not lock.acquire(block=False):
            pass
    lock.release()


def test_an_abandoned_lock_whose_warning_is_an_error_is_free_again(mp, ctx):
    lock = ctx.Lock()
    in_children(ctx, 1, acquire_and_exit, lock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(mp.AbandonedLockWarning):
            lock.acquire()
    assert not lock.locked()
    assert lock.acquire(False)


# Semaphores


def test_semaphores_count(mp):
    semaphore = mp.Semaphore(2)
    assert semaphore.get_value() == 2
    assert semaphore.acquire() and semaphore.acquire() and not semaphore.acquire(False)
    for _ in range(4):
        semaphore.release()
    assert semaphore.get_value() == 4
    bounded = mp.BoundedSemaphore(2)
    with pytest.raises(ValueError, match="released too many times"):
        bounded.release()
    assert isinstance(bounded, mp.synchronize.Semaphore)


@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_wrong_values_are_refused(mp, kind):
    for value in (-1, mp.synchronize.SEM_VALUE_MAX + 1):
        with pytest.raises(ValueError, match="between 0 and"):
            getattr(mp, kind)(value)


def test_a_semaphore_at_its_maximum_cannot_be_released(mp):
    semaphore = mp.Semaphore(mp.synchronize.SEM_VALUE_MAX)
    with pytest.raises(ValueError, match="too many times"):
        semaphore.release()


# Conditions


def test_a_condition_needs_its_lock(mp):
    for lock in (mp.Lock(), mp.RLock(), None):
        condition = mp.Condition(lock)
        for method in (condition.wait, condition.notify, condition.notify_all):
            with pytest.raises(AssertionError, match="to be held by this thread"):
                method()
        with condition:
            got, took = timed(condition.wait, 0.05)
            assert got is False and took >= 0.05
            condition.notify()
        with pytest.raises((AssertionError, ValueError)):
            condition.release()


def wait_once(condition, ready, woken):
    with condition:
        with condition:  # a recursive lock is released however deep it is held
            ready.release()
            assert condition.wait() is True
            woken.release()


def test_notifies_exactly_so_many(ctx):
    condition, ready, woken = ctx.Condition(), ctx.Semaphore(0), ctx.Semaphore(0)
    children = [ctx.Process(target=wait_once, args=(condition, ready, woken)) for _ in range(5)]
    for child in children:
        child.start()
        assert ready.acquire(timeout=60)
    for n, total in [(1, 1), (2, 3), (10, 5)]:
        with condition:
            condition.notify(n)
        while woken.get_value() < total:
            assert condition._sleeping_count.get_value() == 5 - total
            time.sleep(0.001)
    for child in children:
        child.join()
    assert woken.get_value() == 5
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"


def test_wait_for(mp):
    condition = mp.Condition()
    with condition:
        assert condition.wait_for(lambda: "yes", 0) == "yes"
        got, took = timed(condition.wait_for, lambda: 0, 0.05)
        assert got == 0 and took >= 0.05


def test_an_exception_out_of_wait_leaves_the_lock_held(mp):
    condition = mp.Condition()

    def handler(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt), condition:
            try:
                condition.wait()
            finally:
                assert condition._lock._semlock._is_mine()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"


def test_a_condition_calls_what_a_subclass_of_the_lock_has_taught_it(mp):
    calls = []

    class Loud(mp.synchronize.Lock):
        def acquire(self, *args, **kwargs):
            calls.append("acquire")
            return super().acquire(*args, **kwargs)

    condition = mp.Condition(Loud(ctx=mp.get_context()))
    with condition:
        condition.wait(0)
    assert calls == ["acquire", "acquire"]


# Events


def wait_for_event(event, woken):
    assert event.wait() is True
    woken.release()


def test_an_event_releases_all(ctx):
    event, woken = ctx.Event(), ctx.Semaphore(0)
    assert not event.is_set()
    got, took = timed(event.wait, 0.05)
    assert got is False and took >= 0.05
    children = [ctx.Process(target=wait_for_event, args=(event, woken)) for _ in range(3)]
    for child in children:
        child.start()
    event.set()
    assert event.is_set() and event.wait(0)
    for child in children:
        child.join()
    assert woken.get_value() == 3
    event.clear()
    assert not event.is_set() and not event.wait(-1)


# Barriers


def meet(barrier, rounds, indices):
    for _ in range(rounds):
        indices[barrier.wait()] += 1


def test_barrier_rounds(ctx):
    barrier, indices = ctx.Barrier(3), ctx.RawArray("i", 3)
    in_children(ctx, 3, meet, barrier, 50, indices)
    assert indices[:] == [50, 50, 50]
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
    assert isinstance(barrier, threading.Barrier)


def in_threads(count, function):
    results = []

    def run():
        try:
            results.append(function())
        except Exception as error:
            results.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_action_runs_once_a_round_and_before_anybody_goes_on(mp):
    seen = []
    barrier = mp.Barrier(3, action=lambda: seen.append(len(seen)))
    assert sorted(in_threads(3, lambda: (barrier.wait(), len(seen)))) == [(0, 1), (1, 1), (2, 1)]
    assert seen == [0]


def test_a_failing_action_breaks_the_barrier(mp):
    barrier = mp.Barrier(2, action=lambda: 1 // 0)
    assert set(in_threads(2, barrier.wait)) == {ZeroDivisionError, threading.BrokenBarrierError}
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


def test_running_out_of_time_breaks_the_barrier(mp):
    for barrier, timeout in [(mp.Barrier(2), 0.05), (mp.Barrier(2, timeout=0.05), None)]:
        begin = time.monotonic()
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait(timeout)
        assert time.monotonic() - begin >= 0.05 and barrier.broken


@pytest.mark.parametrize("how", ["abort", "reset"])
def test_abort_and_reset_release_those_who_wait(mp, how):
    barrier = mp.Barrier(2)

    def end():
        while barrier.n_waiting < 1:
            time.sleep(0.001)
        getattr(barrier, how)()

    ender = threading.Thread(target=end)
    ender.start()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    ender.join()
    assert barrier.broken == (how == "abort")


def test_a_barrier_needs_a_party(mp):
    with pytest.raises(ValueError, match="at least 1 party"):
        mp.Barrier(0)


def test_a_barrier_in_a_cycle_is_collected(mp):
    class Meeting:
        def __init__(self):
            self.barrier = mp.Barrier(1, action=self.begin)
            self.begun = 0

        def begin(self):
            self.begun += 1

    meeting = Meeting()
    meeting.barrier.wait()
    assert meeting.begun == 1
    gone = weakref.ref(meeting.barrier)
    del meeting
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Value"])
def test_the_methods_that_with_calls_are_methods(mp, kind):
    """They have a descriptor of their own, which nobody should notice."""
    it = mp.Value("i") if kind == "Value" else getattr(mp, kind)()
    enter, leave = it.__enter__, it.__exit__
    assert enter.__self__ is it and enter.__name__ == "__enter__" and callable(leave)
    assert repr(leave).startswith("<built-in method __exit__ of")
    assert enter() is True and leave(None, None, None) is None
    assert type(it).__enter__(it) is True and type(it).__exit__(it) is None
    assert len(inspect.signature(type(it).__exit__).parameters) == 4
    with contextlib.ExitStack() as stack:
        assert stack.enter_context(it) is True
    for wrong in ((1,), (1, 2)):
        with pytest.raises(TypeError):
            enter(*wrong)
    with pytest.raises(TypeError):
        enter(block=True)
    with pytest.raises(TypeError):
        type(it).__enter__(object())
    found = next(c.__dict__["__enter__"] for c in type(it).__mro__ if "__enter__" in c.__dict__)
    with pytest.raises(TypeError):
        found.__get__(object(), type(it))

    class Mine(type(it)):
        def __enter__(self):
            return super().__enter__(), "mine"

    mine = Mine(mp.RawValue("i"), ctx=mp) if kind == "Value" else Mine(ctx=mp)
    with mine as entered:
        assert entered == (True, "mine")


def nest(lock, depth):
    with lock:
        if depth:
            nest(lock, depth - 1)


def test_with_leaves_no_reference(mp):
    lock = mp.RLock()
    nest(lock, 50)  # what is kept to be used again is there now
    before = sys.getrefcount(lock), sys.getrefcount(type(lock.__enter__))
    for _ in range(10):
        nest(lock, 50)
    assert (sys.getrefcount(lock), sys.getrefcount(type(lock.__enter__))) == before
    gone = weakref.ref(lock)
    del lock
    gc.collect()
    assert gone() is None
