"""Pools of processes and threads: every call, functions, and the life of a pool."""

from __future__ import annotations

import gc
import itertools
import math
import os
import pickle
import queue
import signal
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest

import phalanx
import processes
from phalanx.pool import (
    CLOSE,
    RUN,
    TERMINATE,
    ApplyResult,
    AsyncResult,
    IMapIterator,
    IMapUnorderedIterator,
    MapResult,
    Pool,
    ThreadPool,
    mapstar,
    starmapstar,
)
from pool_tasks import echo, refuse, refuse_odd, slow_echo, square, touch
from processes import until

pytestmark = pytest.mark.timeout(120)

# -- what the workers do ---------------------------------------------------------------------------


def add(a, b=0, *, c=0):
    return a + b + c


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


class Counting:
    """A callable with state that a call changes."""

    def __init__(self):
        self.calls = 0

    def __call__(self, _):
        self.calls += 1
        return self.calls


class Heavy:
    """A large callable that counts in which process it has been unpickled how often."""

    loads = 0

    def __init__(self):
        self.ballast = os.urandom(200_000)

    def __setstate__(self, state):
        self.__dict__.update(state)
        Heavy.loads += 1

    def __call__(self, _):
        time.sleep(0.001)
        return os.getpid(), Heavy.loads


_initialized = None


def initialize(value):
    global _initialized
    _initialized = value


def initialized(_):
    return _initialized


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def pool_in_worker(method, n):
    with phalanx.get_context(method).Pool(2) as pool:
        return pool.map(square, range(n))


# -- calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [range(1000), range(500, -500, -3), range(2**70, 2**70 + 200)])
@pytest.mark.parametrize("chunksize", [1, 63, 64, 100, 5000])
def test_ranges_in_parts(any_pool, numbers, chunksize):
    squares = [x * x for x in numbers]
    assert any_pool.map(square, numbers, chunksize) == squares
    assert list(any_pool.imap(square, numbers, chunksize)) == squares
    with pytest.raises(TypeError):
        any_pool.starmap(add, numbers, chunksize)


def test_every_call(pool):
    assert pool.apply(add, (1, 2), {"c": 3}) == 6
    assert pool.apply(add, [1]) == 1
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    assert pool.map(square, range(100), 7) == [x * x for x in range(100)]
    assert pool.map(square, (x for x in range(5)), 1) == [0, 1, 4, 9, 16]
    assert pool.starmap(add, [(1, 2), [3, 4], (5,)]) == [3, 7, 5]
    assert pool.starmap(add, zip(range(50), range(50)), 1) == [2 * x for x in range(50)]
    assert list(pool.imap(square, range(100))) == [x * x for x in range(100)]
    assert list(pool.imap(square, range(100), chunksize=9)) == [x * x for x in range(100)]
    assert sorted(pool.imap_unordered(square, iter(range(100)))) == [x * x for x in range(100)]
    assert sorted(pool.imap_unordered(square, range(100), 9)) == [x * x for x in range(100)]
    assert pool.apply_async(add, (1,), {"b": 1}).get() == 2
    assert pool.map_async(square, range(5)).get() == [0, 1, 4, 9, 16]
    assert pool.starmap_async(add, [(1, 2)]).get() == [3]
    for empty in ([], (), range(0), iter([])):
        assert pool.map(square, empty) == []
        assert list(pool.imap(square, empty)) == []
        assert list(pool.imap_unordered(square, empty)) == []


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 2**100, 1.5, "ß\ud800", b"x", (), [1, [2]], {"a": {1}}, bytes(3_000_000)],
    ids=lambda value: repr(value)[:20],
)
def test_values_go_there_and_back(any_pool, value):
    assert any_pool.apply(echo, (value,)) == value
    assert any_pool.map(echo, [value] * 3) == [value] * 3
    assert any_pool.map(echo, [value] * 3, 1) == [value] * 3


def test_arrays_go_there_and_back(pool):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(500_000, dtype="f8")
    back = pool.apply(echo, (array,))
    assert (back == array).all()
    back[0] = 7
    arrays = pool.map(echo, [array + i for i in range(20)], 1)
    assert [a[0] for a in arrays] == list(range(20))


def test_chunks_are_as_in_the_standard_library(pool):
    pids = pool.map(pid_after, [0.0] * 16)  # 16 items, 2 workers: chunks of 2
    assert all(pids[i] == pids[i + 1] for i in range(0, 16, 2))
    assert pool.map(square, range(3), chunksize=100) == [0, 1, 4]
    with pytest.raises(ValueError, match="Chunksize"):
        pool.imap(square, range(3), 0)


def test_results_tell_about_themselves(any_pool):
    assert AsyncResult is ApplyResult and issubclass(MapResult, ApplyResult)
    result = ThreadPool.apply_async(any_pool, time.sleep, (0.2,))
    assert type(result) is ApplyResult
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(phalanx.TimeoutError):
        result.get(timeout=0.001)
    assert result.wait(0.001) is None and not result.ready()
    until(result.ready)
    assert result.successful() and result.get() is None and result.get(0) is None
    assert not any_pool._cache
    failed = any_pool.apply_async(refuse, (1,))
    failed.wait()
    assert failed.ready() and not failed.successful()
    for _ in range(2):
        with pytest.raises(ValueError, match="no 1"):
            failed.get()
    assert type(any_pool.map_async(square, [1])) is MapResult
    assert type(any_pool.imap(square, [1])) is IMapIterator
    iterator = any_pool.imap_unordered(time.sleep, [0.2])
    assert type(iterator) is IMapUnorderedIterator and iter(iterator) is iterator
    with pytest.raises(phalanx.TimeoutError):
        iterator.next(0.001)
    assert iterator.next(timeout=30) is None
    for _ in range(2):
        with pytest.raises(StopIteration):
            iterator.next()


def test_wrong_timeouts(pool):
    result = pool.apply_async(square, (1,))
    with pytest.raises(TypeError):
        result.get(timeout="soon")
    assert result.get(30) == 1


def test_callbacks(any_pool):
    good, bad = [], []
    calls = {"callback": good.append, "error_callback": bad.append}
    results = [any_pool.apply_async(refuse_odd, (x,), **calls) for x in range(100)]
    for result in results:
        result.wait()
    assert sorted(good) == list(range(0, 100, 2))
    assert sorted(str(e) for e in bad) == sorted(f"no {x}" for x in range(1, 100, 2))
    good.clear(), bad.clear()
    any_pool.map_async(square, range(3), **calls).wait()
    any_pool.map_async(refuse, range(3), **calls).wait()
    assert good == [[0, 1, 4]] and len(bad) == 1
    any_pool.map_async(square, [], **calls).wait()


def test_callbacks_are_called_though_nobody_waits(any_pool):
    done = threading.Event()
    any_pool.apply_async(square, (3,), callback=lambda value: done.set())
    assert done.wait(30)


def test_callbacks_never_overlap(any_pool):
    inside, overlaps = [], []

    def callback(value):
        overlaps.extend(inside)
        inside.append(value)
        time.sleep(0.002)
        inside.remove(value)

    results = [any_pool.apply_async(square, (x,), callback=callback) for x in range(30)]
    threads = [threading.Thread(target=r.wait) for r in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []


def test_a_callback_that_raises_is_reported_and_harms_nobody(any_pool, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: reported.append(info.exc_value))

    def callback(value):
        raise LookupError("in a callback")

    assert any_pool.apply_async(square, (3,), callback=callback).get() == 9
    assert [type(e) for e in reported] == [LookupError]
    assert any_pool.map(square, range(3)) == [0, 1, 4]


def test_a_callback_may_use_the_pool(any_pool):
    got = []

    def callback(value):
        got.append(any_pool.apply(square, (value,)))
        got.extend(any_pool.map(square, [value, value], 1))
        got.append(any_pool.apply_async(square, (1,), callback=got.append).get())

    any_pool.apply_async(square, (3,), callback=callback).get(30)
    assert got == [81, 81, 81, 1, 1]


def test_many_threads_wait_at_once(any_pool):
    failures = []

    def use(k):
        try:
            for i in range(100):
                assert any_pool.apply(add, (k, i)) == k + i
            assert any_pool.map(square, range(k), 1) == [x * x for x in range(k)]
            assert sorted(any_pool.imap_unordered(echo, range(50))) == list(range(50))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(k,)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_iterable_may_depend_on_the_results(any_pool):
    todo = queue.Queue()
    todo.put(1)
    done = []
    for value in any_pool.imap_unordered(square, iter(todo.get, None)):
        done.append(value)
        todo.put(len(done) + 1 if len(done) < 20 else None)
    assert done == [x * x for x in range(1, 21)]


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_an_endless_iterable_is_read_as_results_are_taken(any_pool, name):
    read = itertools.count()
    last = 0

    def source():
        nonlocal last
        while True:
            last = next(read)
            yield last

    results = getattr(any_pool, name)(echo, source())
    assert len(set(itertools.islice(results, 3000))) == 3000
    time.sleep(0.2)
    assert last < 6000


def test_large_inputs_do_not_pile_up(pool):
    # 4 GB in all: the arena would not hold them.
    assert sum(pool.imap(len, (bytes(4_000_000) for _ in range(1000)))) == 4_000_000_000
    assert sum(pool.map(len, [bytes(4_000_000)] * 500, 1)) == 2_000_000_000


def test_iterators_that_are_let_go(any_pool):
    iterator = any_pool.imap(square, range(3000))
    assert next(iterator) == 0
    del iterator
    any_pool.imap_unordered(square, iter(range(3000)))
    assert any_pool.map(square, range(10)) == [x * x for x in range(10)]


def test_nothing_is_kept_of_arguments_and_results(any_pool):
    class_ = Kept
    items = [class_() for _ in range(10)]
    refs = [weakref.ref(item) for item in items]
    any_pool.map(echo, items)
    any_pool.apply(echo, (items[0],))
    results = list(any_pool.imap(echo, items))
    del items, results
    gc.collect()
    until(lambda: (gc.collect(), not any(ref() for ref in refs))[1], "the end of the items")


class Kept:
    pass


# -- functions -------------------------------------------------------------------------------------


def test_a_large_function_is_loaded_once_in_each_worker(pool):
    for _ in range(2):
        loads = dict(pool.map(Heavy(), range(40), 1))
    assert set(loads.values()) <= {1, 2}


def test_state_of_a_small_callable_is_not_shared_by_tasks(pool):
    # Threads would share the object itself.
    counting = Counting()
    assert pool.map(counting, range(6), 1) == [1] * 6
    assert counting.calls == 0


def test_functions_that_pickle_refuses(pool):
    pytest.importorskip("cloudpickle")
    offset = 10
    assert pool.map(lambda x: x + offset, range(3)) == [10, 11, 12]
    offset = 20
    assert pool.apply(lambda x: x + offset, (1,)) == 21


@pytest.mark.parametrize("where", ["-c", "-"])
def test_functions_of_a_main_without_a_file(start_method, where):
    pytest.importorskip("cloudpickle")
    program = (
        "import phalanx\n"
        f"with phalanx.get_context({start_method!r}).Pool(2) as pool:\n"
        "    def late(x): return x + 1\n"
        "    print(pool.map(late, range(3)))\n"
    )
    arguments = ["-c", program] if where == "-c" else [where]
    done = processes.run_python(*arguments, stdin="" if where == "-c" else program)
    assert (done.stdout, done.stderr) == ("[1, 2, 3]\n", "")


# -- the pool's life -------------------------------------------------------------------------------


def test_initializer(ctx):
    with ctx.Pool(2, initialize, ("ready",)) as pool:
        assert set(pool.map(initialized, range(10), 1)) == {"ready"}


def test_maxtasksperchild(ctx):
    with ctx.Pool(2, maxtasksperchild=3) as pool:
        pids = pool.map(pid_after, [0.0] * 20, 1)
        assert max(pids.count(pid) for pid in pids) <= 3
        results = [pool.apply_async(pid_after, (0.0,)) for _ in range(20)]
        pool.close()
        pool.join()
        pids = [r.get() for r in results]
        assert max(pids.count(pid) for pid in pids) <= 3


def test_maxtasksperchild_though_nobody_waits(ctx, tmp_path):
    paths = [str(tmp_path / str(i)) for i in range(8)]
    with ctx.Pool(1, maxtasksperchild=1) as pool:
        pool.map_async(touch, paths, 1)
        until(lambda: len(os.listdir(tmp_path)) == 8)


@pytest.mark.parametrize("value", [0, -1, 0.5, "12"])
def test_wrong_maxtasksperchild(value):
    with pytest.raises(ValueError, match="maxtasksperchild"):
        phalanx.Pool(1, maxtasksperchild=value)


def test_attributes_that_programs_use(pool, start_method):
    assert (pool._state, pool._processes, len(pool._pool)) == (RUN, 2, 2)
    assert all(w.daemon and w.is_alive() and "PoolWorker-" in w.name for w in pool._pool)
    assert pool._ctx.get_start_method() == start_method
    assert repr(pool) == "<phalanx.pool.Pool state=RUN pool_size=2>"
    os.kill(pool._pool[0].pid, signal.SIGKILL)
    pool._pool[0].join()
    pool._repopulate_pool()
    assert len(pool._pool) == 2 and all(w.is_alive() for w in pool._pool)
    with pytest.raises(NotImplementedError, match="cannot be passed"):
        pickle.dumps(pool)
    assert mapstar((square, [2, 3])) == [4, 9] and starmapstar((add, [(1, 2)])) == [3]


def test_close_and_join(any_pool):
    results = [any_pool.apply_async(slow_echo, (x,)) for x in range(50)]
    unread = any_pool.imap(square, range(2500))
    late = any_pool.imap_unordered(square, iter(range(2500)))
    with pytest.raises(ValueError, match="still running"):
        any_pool.join()
    any_pool.close()
    assert any_pool._state == CLOSE
    for call in (any_pool.apply, any_pool.apply_async, any_pool.map, any_pool.imap):
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, (1,))
    with pytest.raises(ValueError, match="Pool not running"), any_pool:
        pass
    any_pool.join()
    assert [r.get(0) for r in results] == list(range(50))
    assert list(unread) == [x * x for x in range(2500)] and len(list(late)) == 2500
    assert not any(w.is_alive() for w in any_pool._pool)


def test_callbacks_have_run_once_join_returns(any_pool):
    got = []
    for x in range(20):
        any_pool.apply_async(slow_echo, (x,), callback=got.append)
    any_pool.close()
    any_pool.join()
    assert sorted(got) == list(range(20))


def test_terminate(ctx):
    pool = ctx.Pool(2)
    results = [pool.apply_async(time.sleep, (60,)) for _ in range(5)]
    iterator = pool.imap(time.sleep, itertools.repeat(60))
    errors = []
    threads = [
        threading.Thread(target=lambda f=f: errors.append(caught_by(f)))
        for f in (results[0].get, lambda: next(iterator))
    ]
    for thread in threads:
        thread.start()
    pool.map_async(time.sleep, [60] * 10_000, 1)
    pool.terminate()
    assert pool._state == TERMINATE
    for thread in threads:
        thread.join(30)
    assert [type(e) for e in errors] == [RuntimeError] * 2
    for call in (results[-1].get, lambda: list(iterator)):
        with pytest.raises(RuntimeError, match="terminated"):
            call()
            call()
    pool.terminate()
    pool.join()
    assert not any(w.is_alive() for w in pool._pool)


def caught_by(call):
    try:
        call()
    except Exception as error:
        return error
    return None


def test_terminate_in_a_callback(any_pool):
    done = threading.Event()
    any_pool.apply_async(square, (1,), callback=lambda _: (any_pool.terminate(), done.set()))
    assert done.wait(30)


def test_join_in_a_callback_would_wait_for_itself(any_pool):
    def callback(_):
        any_pool.close()
        caught.append(caught_by(any_pool.join))

    caught = []
    result = any_pool.apply_async(square, (7,), callback=callback)
    assert result.get(30) == 49
    assert [type(error) for error in caught] == [RuntimeError]
    any_pool.join()


def test_a_worker_that_ignores_sigterm_is_killed(ctx, tmp_path, monkeypatch):
    monkeypatch.setattr(phalanx.pool, "GRACE", 0.2)
    path = str(tmp_path / "there")
    pool = ctx.Pool(1)
    pool.apply_async(ignore_sigterm, (path,))
    wait_for(path)
    pool.terminate()
    pool.join()
    assert [w.exitcode for w in pool._pool] == [-signal.SIGKILL]


def ignore_sigterm(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    touch(path)
    time.sleep(60)


def test_a_pool_that_was_not_closed_warns():
    pool = phalanx.Pool(1)
    assert pool.apply(square, (2,)) == 4
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
        gc.collect()
    until(lambda: not phalanx.active_children())


def test_a_pool_lives_until_its_last_call_is_done(any_pool):
    got = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        type(any_pool)(1).apply_async(slow_echo, (5,), callback=got.append)
        until(lambda: got == [5])
        result = type(any_pool)(1).apply_async(slow_echo, (6,))
        assert result.get(30) == 6
        del result
        gc.collect()


def test_programs_that_end_without_closing_their_pool(start_method):
    program = (
        "import phalanx, time\n"
        f"pool = phalanx.get_context({start_method!r}).Pool(2)\n"
        "print(pool.map(abs, [-1]))\n"
        "pool.apply_async(time.sleep, (60,), callback=print)\n"
        "pool.imap(time.sleep, iter([60] * 5000))\n"
    )
    done = processes.run_python("-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n", "")


def test_a_forked_child_cannot_use_its_parents_pool():
    with phalanx.get_context("fork").Pool(1) as pool:
        pid = os.fork()
        if pid == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                os._exit(isinstance(caught_by(lambda: pool.apply(square, (1,))), ValueError))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert pool.apply(square, (3,)) == 9


def test_an_idle_pool_does_nothing(pool):
    assert pool.apply_async(square, (3,)).get() == 9
    names = lambda: [thread.name for thread in threading.enumerate()]  # noqa: E731
    until(lambda: "PoolThread" not in names(), "the end of the pool's threads")
    pids = [os.getpid(), *(w.pid for w in pool._pool)]

    def switches(pid):
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(x.split()[1]) for x in status.splitlines() if x.startswith("voluntary"))

    time.sleep(0.2)
    before = [switches(pid) for pid in pids[1:]]
    time.sleep(0.5)
    assert [switches(pid) for pid in pids[1:]] == before


def test_ctrl_c_in_the_parent(pool):
    for _ in range(3):
        timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.map(time.sleep, [0.5] * 4, 1)
        timer.join()
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_ctrl_c_in_idle_workers(pool):
    pool.map(square, range(4), 1)
    pids = [w.pid for w in pool._pool]
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert pool.map(square, range(5), 1) == [0, 1, 4, 9, 16]
    assert [w.pid for w in pool._pool] == pids


# -- subclasses ------------------------------------------------------------------------------------


class NoDaemonProcess(phalanx.get_context("fork").Process):
    @property
    def daemon(self):
        return False

    @daemon.setter
    def daemon(self, value):
        pass


class NoDaemonPool(Pool):
    @staticmethod
    def Process(ctx, *args, **kwargs):
        return NoDaemonProcess(*args, **kwargs)


def test_pools_in_workers():
    with NoDaemonPool(2, context=phalanx.get_context("fork")) as pool:
        assert pool.starmap(pool_in_worker, [("fork", 3), ("fork", 4)]) == [[0, 1, 4], [0, 1, 4, 9]]
        pool.close()
        pool.join()


def test_a_map_of_ones_own(any_pool):
    """The `istarmap` that many programs add to the pool."""

    def istarmap(self, func, iterable, chunksize=1):
        self._check_running()
        batches = Pool._get_tasks(func, iterable, chunksize)
        result = IMapIterator(self)
        self._taskqueue.put(
            (
                self._guarded_task_generation(result._job, starmapstar, batches),
                result._set_length,
            )
        )
        return (item for chunk in result for item in chunk)

    pairs = [(x, x) for x in range(100)]
    assert list(istarmap(any_pool, add, pairs)) == [2 * x for x in range(100)]
    assert list(istarmap(any_pool, add, iter(pairs), 7)) == [2 * x for x in range(100)]
    assert list(istarmap(any_pool, add, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(istarmap(any_pool, add, ((x, 1 / x) for x in (1, 0))))


class OwnQueues(Pool):
    """As joblib and torch do it."""

    def _setup_queues(self):
        self._inqueue = self._ctx.SimpleQueue()
        self._outqueue = self._ctx.SimpleQueue()
        self._quick_put = self._inqueue.put
        self._quick_get = self._outqueue.get


def test_queues_of_ones_own(ctx):
    with OwnQueues(2, context=ctx) as pool:
        assert pool.map(square, range(20)) == [x * x for x in range(20)]
        assert pool.apply(add, (1,), {"b": 2}) == 3
        assert list(pool.imap(square, range(20))) == [x * x for x in range(20)]
        assert pool.starmap(add, [(1, 2), (3, 4)], 1) == [3, 7]
        with pytest.raises(ValueError, match="no 1"):
            pool.apply(refuse, (1,))
        pool.close()
        pool.join()
        assert not any(w.is_alive() for w in pool._pool)


def test_a_subclass_with_another_apply_async(ctx):
    class Loud(Pool):
        calls = 0

        def apply_async(self, *args, **kwargs):
            self.calls += 1
            return super().apply_async(*args, **kwargs)

    with Loud(1, context=ctx) as pool:
        assert pool.apply(square, (3,)) == 9 and pool.calls == 1


def test_the_number_of_workers_may_be_changed(ctx):
    with ctx.Pool(1) as pool:
        pool._processes = 3
        pool._repopulate_pool()
        assert len(set(pool.map(pid_after, [0.2] * 3, 1))) == 3


# -- much of it ------------------------------------------------------------------------------------


def test_big_map(pool):
    assert pool.map(square, range(200_000)) == [n * n for n in range(200_000)]


def test_next_with_a_timeout(pool):
    results = pool.imap(time.sleep, [0.5])
    with pytest.raises(phalanx.TimeoutError):
        results.next(timeout=0.05)
    assert results.next(timeout=60) is None


def test_big_results(pool):
    numbers = [20_000, 30_000, 10_000]
    assert pool.map(math.factorial, numbers) == [math.factorial(n) for n in numbers]
    assert pool.map(bytes, [10_000_000] * 4, chunksize=1) == [bytes(10_000_000)] * 4


def test_two_pools_at_once(ctx):
    with ctx.Pool(2) as one, ctx.Pool(2) as two:
        first = one.map_async(square, range(1000))
        second = two.map_async(square, range(1000))
        assert first.get(60) == second.get(60) == [n * n for n in range(1000)]
