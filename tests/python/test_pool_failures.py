"""Tasks that fail and workers that die: what of it reaches whom."""

from __future__ import annotations

import faulthandler
import os
import pickle
import random
import signal
import threading
import time
from contextlib import suppress

import pytest

import phalanx
import processes
from phalanx.pool import MaybeEncodingError, RemoteTraceback, ThreadPool, WorkerDied
from pool_tasks import echo, refuse, refuse_odd, square, touch
from processes import until

pytestmark = pytest.mark.timeout(120)

# -- what the workers do ---------------------------------------------------------------------------


def die(how):
    if isinstance(how, int):
        os._exit(how)
    faulthandler.disable()
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)


def die_over(x, fatal):
    if x in fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def leave(what):
    raise {"exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "odd": OddError("odd")}[what]


class OddError(BaseException):
    pass


class QuotaError(Exception):
    """It pickles, and does not unpickle by a call of the class."""

    def __init__(self, user, used):
        super().__init__(f"{user} has used {used}")
        self.used = used


def overdraw(x):
    raise QuotaError("ada", x)


class StubbornError(Exception):
    """It pickles, and does not unpickle."""

    def __reduce__(self):
        return int, ("no number",)


def be_stubborn(x):
    raise StubbornError("will not go")


class Sealed:
    """Opens nowhere."""

    def __reduce__(self):
        return _refuse_to_open, ()


def _refuse_to_open():
    raise LookupError("this opens nowhere")


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("this will not be pickled")


class Spiteful:
    """Has neither pickle nor repr."""

    def __reduce__(self):
        raise RuntimeError("no pickle")

    def __repr__(self):
        raise RuntimeError("no repr")


def make_sealed(_):
    return Sealed()


def make_unpicklable(_):
    return Unpicklable()


def make_spiteful(_):
    return Spiteful()


def fail_to_start(path):
    with open(path, "ab") as file:
        file.write(b"x")
    error = RuntimeError("no licence for this worker")
    error.details = bytes(100_000)  # too much for a message without buffers
    raise error


def die_at_start(path):
    with open(path, "ab") as file:
        file.write(b"x")
    os._exit(9)


def start_second_time(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os._exit(9)


# -- failing tasks ---------------------------------------------------------------------------------


def test_errors_have_the_traceback_of_the_worker(pool):
    with pytest.raises(ValueError, match="no 1") as caught:
        pool.apply(refuse, (1,))
    assert type(caught.value.__cause__) is RemoteTraceback
    assert 'raise ValueError(f"no {x}")' in caught.value.__cause__.tb
    with pytest.raises(ValueError, match="no"):
        pool.map(refuse_odd, range(10), 1)
    iterator = pool.imap(refuse_odd, range(4))
    assert next(iterator) == 0
    with pytest.raises(ValueError, match="no 1"):
        next(iterator)
    assert next(iterator) == 2
    with pytest.raises(ValueError, match="no 3"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_all_items_of_a_map_are_worked_on_before_it_raises(any_pool, tmp_path):
    paths = [str(tmp_path / str(i)) for i in range(10)]
    with pytest.raises((TypeError, ValueError)):
        any_pool.map(touch, [3.5, *paths], 1)
    assert len(os.listdir(tmp_path)) == 10


@pytest.mark.parametrize("what", ["exit", "interrupt", "odd"])
def test_base_exceptions_of_a_task_are_raised(pool, what):
    with pytest.raises((SystemExit, KeyboardInterrupt, OddError)):
        pool.apply_async(leave, (what,)).get(30)
    assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_an_argument_that_cannot_be_pickled(pool):
    for call in (
        lambda: pool.apply(echo, (Unpicklable(),)),
        lambda: pool.apply_async(echo, (Unpicklable(),)).get(30),
        lambda: pool.map(echo, [1, Unpicklable()]),
        lambda: pool.map_async(echo, [1, Unpicklable()], 1).get(30),
        lambda: pool.starmap(echo, [(Unpicklable(),)]),
    ):
        with pytest.raises(RuntimeError, match="will not be pickled"):
            call()
    iterator = pool.imap(echo, [0, Unpicklable(), 2])
    assert next(iterator) == 0
    with pytest.raises(RuntimeError, match="will not be pickled"):
        next(iterator)
    assert list(iterator) == [2]
    errors = []
    pool.apply_async(echo, (Unpicklable(),), error_callback=errors.append).wait()
    assert len(errors) == 1


def test_a_function_that_cannot_be_pickled(pool):
    class Local:
        __reduce__ = Unpicklable.__reduce__

        def __call__(self):
            pass

    for call in (
        lambda: pool.apply(Local()),
        lambda: pool.map(Local(), [1, 2]),
        lambda: list(pool.imap(Local(), [1, 2])),
        lambda: pool.apply_async(Local()).get(30),
    ):
        with pytest.raises(RuntimeError, match="will not be pickled"):
            call()


def test_a_task_that_cannot_be_unpickled(pool):
    with pytest.raises(LookupError, match="opens nowhere"):
        pool.apply(echo, (Sealed(),))
    assert pool.map(square, range(3)) == [0, 1, 4]


@pytest.mark.parametrize("make", [make_unpicklable, make_spiteful])
def test_a_result_that_cannot_be_pickled(pool, make):
    for call in (lambda: pool.apply(make, (1,)), lambda: pool.map(make, [1])):
        with pytest.raises(MaybeEncodingError) as caught:
            call()
        assert caught.value.exc and caught.value.value
    assert pool.map(square, range(3)) == [0, 1, 4]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.exc, again.value) == (caught.value.exc, caught.value.value)


def test_a_result_that_cannot_be_unpickled(pool):
    for call in (
        lambda: pool.apply(make_sealed, (1,)),
        lambda: pool.map(make_sealed, [1, 2]),
        lambda: list(pool.imap(make_sealed, [1])),
    ):
        with pytest.raises(LookupError, match="opens nowhere"):
            call()
    assert pool.map(square, range(3)) == [0, 1, 4]


def test_an_exception_whose_class_wants_other_arguments(pool):
    for call in (lambda: pool.apply(overdraw, (1,)), lambda: pool.map(overdraw, [1, 1])):
        with pytest.raises(QuotaError, match="ada has used 1") as caught:
            call()
        assert caught.value.used == 1
        assert "in overdraw" in str(caught.value.__cause__)


def test_an_exception_that_cannot_be_unpickled(pool):
    for call in (lambda: pool.apply(be_stubborn, (1,)), lambda: pool.map(be_stubborn, [1, 2])):
        with pytest.raises(ValueError, match="no number") as caught:
            call()
        assert "StubbornError: will not go" in str(caught.value.__cause__)
    assert pool.map(square, range(3)) == [0, 1, 4]


def test_an_exception_that_cannot_be_pickled(pool):
    with pytest.raises(MaybeEncodingError, match="with a lock"):
        pool.apply(raise_unpicklable)


def raise_unpicklable():
    raise ValueError("with a lock", threading.Lock())


def test_an_iterable_that_fails(any_pool):
    def source():
        yield from range(5)
        raise LookupError("no more")

    with pytest.raises(LookupError):
        any_pool.map(square, source())
    for name in ("imap", "imap_unordered"):
        got = []
        with pytest.raises(LookupError, match="no more") as caught:
            for value in getattr(any_pool, name)(square, source()):
                got.append(value)
        assert caught.value.__cause__ is None
        if name == "imap":
            assert got == [0, 1, 4, 9, 16]

    class Liar:
        def __len__(self):
            return 100

        def __iter__(self):
            return source()

    with pytest.raises(LookupError):
        any_pool.map(square, Liar(), 1)
    with pytest.raises(LookupError):
        any_pool.map_async(square, Liar(), 1).get(30)


# -- dying workers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", 7])
def test_a_death_costs_its_task_and_nothing_else(pool, how):
    lost = pool.apply_async(die, (how,))
    others = [pool.apply_async(square, (x,)) for x in range(50)]
    with pytest.raises(WorkerDied) as caught:
        lost.get(30)
    error = caught.value
    assert isinstance(error, RuntimeError) and phalanx.WorkerDied is WorkerDied
    assert error.exitcode == (how if isinstance(how, int) else -getattr(signal, how))
    assert error.worker in str(error) and str(error.pid) in str(error)
    assert (how if isinstance(how, str) else f"code {how}") in str(error)
    assert pickle.loads(pickle.dumps(error)).pid == error.pid
    assert [r.get(30) for r in others] == [x * x for x in range(50)]
    assert pool.map(square, range(10)) == [x * x for x in range(10)]
    until(lambda: len(pool._pool) == 2, "the new worker")
    assert error.pid not in [w.pid for w in pool._pool]


def test_deaths_in_a_map(pool):
    with pytest.raises(WorkerDied):
        pool.starmap(die_over, [(x, {3, 7}) for x in range(20)], 1)
    got, lost = [], 0
    iterator = pool.imap(Fatal({3, 7}), range(20))
    while True:
        try:
            got.append(next(iterator))
        except WorkerDied as died:
            lost += 1
            assert died.task in {3, 7}
        except StopIteration:
            break
    assert lost == 2 and got == [x for x in range(20) if x not in {3, 7}]


class Fatal:
    def __init__(self, fatal):
        self.fatal = fatal

    def __call__(self, x):
        return die_over(x, self.fatal)


def test_a_killed_idle_worker_costs_nothing(ctx):
    with ctx.Pool(1) as pool:
        for _ in range(2):
            pid = pool.apply(os.getpid)
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not processes.is_running(pid))
            assert pool.apply(square, (7,)) == 49
            assert pool.apply(os.getpid) != pid


def test_workers_are_replaced_though_nobody_waits(ctx, tmp_path):
    path = str(tmp_path / "there")
    with ctx.Pool(1) as pool:
        pool.apply_async(die, (1,))
        pool.apply_async(touch, (path,))
        until(lambda: os.path.exists(path))


def test_random_kills_lose_nothing_else(ctx):
    rng = random.Random(7)
    with ctx.Pool(3) as pool:
        results = [pool.apply_async(echo_and_pid, (x,)) for x in range(400)]
        lost, killed = 0, set()
        for x, result in enumerate(results):
            try:
                value, pid = result.get(60)
                assert value == x
            except WorkerDied as died:
                assert died.pid in killed
                lost += 1
                continue
            if x % 10 == 0 and pid in [w.pid for w in pool._pool]:
                time.sleep(rng.uniform(0, 0.003))
                with suppress(ProcessLookupError):  # killed before
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        assert lost <= len(killed)
        assert pool.map(square, range(10)) == [x * x for x in range(10)]


def echo_and_pid(x):
    time.sleep(0.001)
    return x, os.getpid()


@pytest.mark.parametrize("fatal", [fail_to_start, die_at_start])
def test_workers_that_cannot_start(ctx, fatal, tmp_path, capfd):
    path = tmp_path / "tries"
    path.touch()
    with ctx.Pool(2, initializer=fatal, initargs=(str(path),)) as pool:
        waiting = pool.map_async(square, range(10))
        with pytest.raises(WorkerDied, match="cannot work") as caught:
            pool.apply(square, (3,))
        with pytest.raises(WorkerDied):
            waiting.get(30)
        with pytest.raises(WorkerDied):
            list(pool.imap(square, range(3)))
        if fatal is fail_to_start:
            assert "no licence" in str(caught.value)
            assert "no licence" in str(caught.value.__cause__)
            assert caught.value.__cause__.details == bytes(100_000)
            assert "fail_to_start" in str(caught.value.__cause__.__cause__)
    assert len(path.read_bytes()) < 20


def test_threads_that_cannot_start(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda info: None)
    path = tmp_path / "tries"
    with ThreadPool(2, fail_to_start, (str(path),)) as pool:
        with pytest.raises(WorkerDied, match="no licence"):
            pool.apply(square, (3,))


def test_one_failed_start_is_forgiven(ctx, tmp_path):
    with ctx.Pool(2, start_second_time, (str(tmp_path / "first"),)) as pool:
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
