"""Pool and ThreadPool: every way to give work, errors, ends, workers' lives."""

from __future__ import annotations

import gc
import itertools
import math
import os
import threading
import time
import weakref

import pytest

from processes import run_python

state: dict[str, object] = {}


def square(number):
    return number * number


def add(a, b, c=0):
    return a + b + c


def fail_at(limit, number):
    if number >= limit:
        raise ValueError(f"{number} is too much")
    return number


def fail_at_three(number):
    return fail_at(3, number)


def sleep_or_not(seconds):
    time.sleep(seconds)
    return seconds


def set_state(**kwargs):
    state.update(kwargs)


def get_state(key):
    return state[key]


def pid_of_worker(_):
    return os.getpid()


def slow_pid_of_worker(_):
    time.sleep(0.01)
    return os.getpid()


def leave(code):
    raise SystemExit(code)


def interrupt(_):
    raise KeyboardInterrupt("in a task")


def worker_daemon(_):
    import phalanx

    return phalanx.current_process().daemon


class WontUnpickle:
    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ValueError("refuses to be unpickled")


def make_wont_unpickle(_):
    return WontUnpickle()


class OddError(Exception):
    """Its constructor takes other arguments than its pickle will give."""

    def __init__(self, one, two):
        super().__init__("odd")


def raise_odd(_):
    raise OddError(1, 2)


@pytest.fixture
def pool(ctx):
    with ctx.Pool(3) as pool:
        yield pool


def test_smoke(pool):
    assert pool.apply(add, (1, 2), {"c": 3}) == 6


def test_map(pool):
    assert pool.map(square, []) == []
    assert pool.map(square, range(1)) == [0]
    for chunksize in (None, 1, 7, 1000):
        assert pool.map(square, range(100), chunksize) == [n * n for n in range(100)]
    assert pool.map(square, iter(range(10))) == [n * n for n in range(10)]
    assert pool.starmap(add, [(1, 2), (3, 4, 5)]) == [3, 12]


def test_big_map(pool):
    assert pool.map(square, range(200_000)) == [n * n for n in range(200_000)]


def test_imap_is_in_order_and_lazy(pool):
    assert list(pool.imap(square, range(50))) == [n * n for n in range(50)]
    assert list(pool.imap(square, range(50), chunksize=7)) == [n * n for n in range(50)]
    results = pool.imap(square, range(3))
    assert [next(results), next(results), next(results)] == [0, 1, 4]
    with pytest.raises(StopIteration):
        next(results)


def test_imap_unordered_has_everything_once(pool):
    assert sorted(pool.imap_unordered(square, range(50))) == [n * n for n in range(50)]
    assert sorted(pool.imap_unordered(square, range(50), chunksize=7)) == [n * n for n in range(50)]
    first = next(pool.imap_unordered(sleep_or_not, [1, 0]))
    assert first == 0


def test_next_with_a_timeout(mp, pool):
    results = pool.imap(sleep_or_not, [0.5])
    with pytest.raises(mp.TimeoutError):
        results.next(timeout=0.05)
    assert results.next(timeout=60) == 0.5


def test_async_result(mp, pool):
    result = pool.apply_async(sleep_or_not, (0.5,))
    assert not result.ready()
    with pytest.raises(ValueError):
        result.successful()
    start = time.monotonic()
    with pytest.raises(mp.TimeoutError):
        result.get(timeout=0.1)
    result.wait(0.1)
    assert time.monotonic() - start >= 0.2
    assert result.get() == 0.5
    assert result.ready()
    assert result.successful()
    assert not failed(pool.apply_async(fail_at, (1, 2))).successful()


def failed(result):
    result.wait(60)
    return result


def test_callbacks(pool):
    got, errors = [], []
    pool.apply_async(add, (1, 2), callback=got.append, error_callback=errors.append)
    pool.map_async(square, range(3), callback=got.append, error_callback=errors.append)
    pool.starmap_async(add, [(1, 2)], callback=got.append)
    pool.apply_async(fail_at, (1, 2), callback=got.append, error_callback=errors.append)
    pool.map_async(fail_at_three, range(4), callback=got.append, error_callback=errors.append)
    pool.close()
    pool.join()
    assert sorted(got, key=str) == [3, [0, 1, 4], [3]]
    assert sorted(map(str, errors)) == ["2 is too much", "3 is too much"]


def test_callback_runs_with_nobody_waiting(pool):
    done = threading.Event()
    pool.apply_async(add, (1, 2), callback=lambda _: done.set())
    assert done.wait(60)


def test_error_has_the_workers_traceback(pool):
    with pytest.raises(ValueError, match="3 is too much") as caught:
        pool.map(fail_at_three, range(4))
    text = str(caught.value.__cause__)
    assert "in fail_at" in text
    assert "raise ValueError" in text


def test_error_in_the_middle_of_imap(pool):
    results = pool.imap(fail_at_three, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    for number in (3, 4):
        with pytest.raises(ValueError, match=f"{number} is too much"):
            next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_waits_for_all_before_it_raises(pool, tmp_path):
    with pytest.raises(ValueError):
        pool.starmap(fail_or_touch, [(tmp_path, n) for n in range(6)], chunksize=1)
    assert len(list(tmp_path.iterdir())) == 5


def fail_or_touch(folder, number):
    if number == 0:
        raise ValueError("the first")
    time.sleep(0.05)
    (folder / str(number)).touch()


def test_error_of_the_iterable_comes_out(pool):
    def numbers():
        yield 1
        raise KeyError("of the iterable")

    with pytest.raises(KeyError, match="of the iterable"):
        pool.map(square, numbers())
    results = pool.imap(square, numbers())
    assert next(results) == 1
    with pytest.raises(KeyError, match="of the iterable"):
        next(results)
    assert pool.map(square, range(3)) == [0, 1, 4]


@pytest.mark.parametrize("task", [interrupt, leave])
def test_base_exceptions_of_tasks_cost_only_the_task(pool, task):
    with pytest.raises(BaseException) as caught:
        pool.apply_async(task, (1,)).get(timeout=60)
    assert not isinstance(caught.value, AssertionError)
    assert pool.map(square, range(10)) == [n * n for n in range(10)]


@pytest.mark.parametrize("task", [make_wont_unpickle, raise_odd])
def test_what_will_not_unpickle_costs_only_the_task(pool, task):
    with pytest.raises(Exception) as caught:
        pool.apply_async(task, (1,)).get(timeout=60)
    assert "Timeout" not in type(caught.value).__name__
    assert pool.map(square, range(10)) == [n * n for n in range(10)]


def test_argument_that_will_not_unpickle_costs_only_the_task(pool):
    with pytest.raises(Exception) as caught:
        pool.apply_async(square, (WontUnpickle(),)).get(timeout=60)
    assert "Timeout" not in type(caught.value).__name__
    assert pool.map(square, range(10)) == [n * n for n in range(10)]


def test_initializer(ctx):
    with ctx.Pool(2, initializer=set_state, initargs=()) as pool:
        assert pool.apply(square, (2,)) == 4
    with ctx.Pool(2, set_state_of, ("key", "value")) as pool:
        assert pool.map(get_state, ["key"] * 10) == ["value"] * 10


def set_state_of(key, value):
    state[key] = value


def test_workers_are_daemons_and_as_many_as_asked_for(ctx):
    with ctx.Pool(4) as pool:
        assert len(pool._pool) == 4
        assert pool.map(worker_daemon, range(4)) == [True] * 4
        pids = set(pool.map(slow_pid_of_worker, range(100), chunksize=1))
        assert pids <= {worker.pid for worker in pool._pool}
        assert len(pids) > 1


def test_maxtasksperchild(ctx):
    with ctx.Pool(2, maxtasksperchild=5) as pool:
        pids = pool.map(pid_of_worker, range(40), chunksize=1)
        pool.close()
        pool.join()
    assert all(pids.count(pid) <= 5 for pid in pids)
    assert len(set(pids)) >= 8


def test_close_and_join_finish_what_was_given(ctx):
    pool = ctx.Pool(2)
    results = [pool.apply_async(sleep_or_not, (0.01,)) for _ in range(20)]
    pool.close()
    pool.join()
    assert [result.get(timeout=0) for result in results] == [0.01] * 20


def test_terminate_does_not_wait(ctx):
    pool = ctx.Pool(2)
    start = time.monotonic()
    for _ in range(1000):
        pool.apply_async(sleep_or_not, (600,))
    pool.terminate()
    pool.join()
    assert time.monotonic() - start < 500


def test_with_block_terminates(ctx):
    with ctx.Pool(2) as pool:
        pool.apply_async(sleep_or_not, (600,))
        workers = list(pool._pool)
    for worker in workers:
        worker.join()
    with pytest.raises(ValueError):
        pool.map(square, [1])


def test_dropped_pool_at_exit(start_method, tmp_path):
    program = tmp_path / "dropped.py"
    program.write_text(
        "import sys\n"
        "import phalanx as mp\n"
        "if __name__ == '__main__':\n"
        "    pool = mp.get_context(sys.argv[1]).Pool(2)\n"
        "    print(pool.map(abs, [-1, -2]))\n"
    )
    done = run_python(program, start_method)
    assert (done.returncode, done.stdout) == (0, "[1, 2]\n")


def test_arguments_and_results_are_let_go(ctx):
    with ctx.Pool(1) as pool:
        argument = [1, 2, 3]
        result = pool.apply_async(len, (argument,))
        assert result.get() == 3
        reference = weakref.ref(result)
        del result
        gc.collect()
        assert reference() is None


def test_big_results(pool):
    numbers = [20_000, 30_000, 10_000]
    assert pool.map(math.factorial, numbers) == [math.factorial(n) for n in numbers]
    assert pool.map(bytes, [10_000_000] * 4, chunksize=1) == [bytes(10_000_000)] * 4


def test_many_threads_share_a_pool(pool):
    wrong = []

    def work(seed):
        numbers = list(range(seed, seed + 200))
        for _ in range(5):
            if pool.map(square, numbers) != [n * n for n in numbers]:
                wrong.append(seed)
            if pool.apply(add, (seed, 1)) != seed + 1:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_pools_at_once(ctx):
    with ctx.Pool(2) as one, ctx.Pool(2) as two:
        first = one.map_async(square, range(1000))
        second = two.map_async(square, range(1000))
        assert first.get(60) == second.get(60) == [n * n for n in range(1000)]


def test_imap_over_an_endless_generator_keeps_a_window(ctx):
    taken = itertools.count()
    with ctx.Pool(2) as pool:
        results = pool.imap(square, (next(taken) for _ in itertools.count()))
        assert [next(results) for _ in range(100)] == [n * n for n in range(100)]
        pool.terminate()
    assert next(taken) < 1_000_000


def test_thread_pool(mp):
    from phalanx.pool import ThreadPool

    with ThreadPool(3) as pool:
        assert pool.map(square, range(100)) == [n * n for n in range(100)]
        assert pool.apply(os.getpid) == os.getpid()
        with pytest.raises(ValueError):
            pool.map(fail_at_three, range(5))
        assert pool.map(lambda n: n + 1, range(3)) == [1, 2, 3]
    with mp.get_context().Pool(1) as pool:
        assert pool.apply(os.getpid) != os.getpid()
