"""What is refused, how clearly it is said, and that everything goes on working afterwards."""

from __future__ import annotations

import gc
import pickle
import queue as stdlib_queue
import re
import threading
from collections.abc import Callable

import pytest

from processes import run_python

UNPICKLABLE = (TypeError, pickle.PicklingError, AttributeError)


def sentence(error: BaseException | pytest.ExceptionInfo) -> str:
    """The message of an error, which has to be one clear sentence."""
    text = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert "\n" not in text, text
    assert len(text.split()) >= 2, f"not a sentence: {text!r}"
    assert not re.search(r"unwrap|panicked|os error \d+", text), text
    return text


def unpicklable() -> object:
    return threading.Lock()


def identity(value: object) -> object:
    return value


def returns_unpicklable(_: object) -> object:
    return threading.Lock()


def raises_unpicklable(_: object) -> object:
    error = ValueError("an error with a lock in it")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def put_all(queue, items) -> None:
    for item in items:
        queue.put(item)


# --- objects that cannot be pickled -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_put_of_unpicklable_raises_at_the_call(ctx, kind):
    queue = getattr(ctx, kind)()
    with pytest.raises(UNPICKLABLE) as caught:
        queue.put(unpicklable())
    sentence(caught)
    assert queue.empty()
    child = ctx.Process(target=put_all, args=(queue, ["one", "two"]))
    child.start()
    child.join()
    assert [queue.get(), queue.get()] == ["one", "two"]
    assert queue.empty()


def test_unpicklable_takes_no_place_in_a_bounded_queue(mp):
    queue = mp.Queue(1)
    for _ in range(3):
        with pytest.raises(UNPICKLABLE):
            queue.put(unpicklable())
    queue.put("fits", timeout=5)
    assert queue.full()
    assert queue.get() == "fits"


def test_unpicklable_is_no_unfinished_task(mp):
    queue = mp.JoinableQueue()
    with pytest.raises(UNPICKLABLE):
        queue.put(unpicklable())
    queue.join()  # does not wait
    with pytest.raises(ValueError) as caught:
        queue.task_done()
    sentence(caught)


def test_what_fails_halfway_through_pickling_leaves_nothing(mp):
    queue = mp.Queue()
    with pytest.raises(UNPICKLABLE):
        queue.put([bytes(1 << 20), {"deep": [unpicklable()]}])
    assert queue.qsize() == 0
    queue.put("next")
    assert queue.get() == "next"


def test_send_of_unpicklable_leaves_the_pipe_usable(mp):
    here, there = mp.Pipe()
    with here, there:
        with pytest.raises(UNPICKLABLE) as caught:
            here.send(unpicklable())
        sentence(caught)
        assert not there.poll()
        here.send("next")
        assert there.recv() == "next"


def test_unpicklable_argument_leaves_the_pool_usable(ctx):
    with ctx.Pool(2) as pool:
        with pytest.raises(UNPICKLABLE):
            pool.apply(identity, (unpicklable(),))
        with pytest.raises(UNPICKLABLE):
            pool.map(identity, [1, unpicklable(), 3])
        with pytest.raises(UNPICKLABLE):
            list(pool.imap(identity, [unpicklable()]))
        assert pool.map(identity, range(10)) == list(range(10))
        pool.close()
        pool.join()


def test_unpicklable_result_or_error_leaves_the_pool_usable(ctx):
    with ctx.Pool(2) as pool:
        with pytest.raises(Exception) as caught:
            pool.apply(returns_unpicklable, (1,))
        assert type(caught.value).__name__ == "MaybeEncodingError"
        with pytest.raises(Exception) as caught:
            pool.apply(raises_unpicklable, (1,))
        assert "an error with a lock in it" in str(caught.value)
        assert pool.map(identity, range(10)) == list(range(10))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_unpicklable_argument_of_a_process_raises_at_start(mp, method):
    process = mp.get_context(method).Process(target=identity, args=(unpicklable(),))
    with pytest.raises(UNPICKLABLE) as caught:
        process.start()
    sentence(caught)
    assert process not in mp.active_children()
    again = mp.get_context(method).Process(target=identity, args=(1,))
    again.start()
    again.join()
    assert again.exitcode == 0


# --- wrong types and values ---------------------------------------------------------------------

ValueOrOSError = (ValueError, OSError)
WRONG: list[tuple[str, type[BaseException] | tuple, Callable]] = [
    ("Queue of 'three'", TypeError, lambda mp: mp.Queue("three")),
    ("JoinableQueue of 2.5", TypeError, lambda mp: mp.JoinableQueue(2.5)),
    ("get(timeout='soon')", TypeError, lambda mp: mp.Queue().get(timeout="soon")),
    ("put(timeout='soon')", TypeError, lambda mp: full(mp).put(2, timeout="soon")),
    ("Semaphore of 'x'", TypeError, lambda mp: mp.Semaphore("x")),
    ("Semaphore of -1", ValueOrOSError, lambda mp: mp.Semaphore(-1)),
    ("BoundedSemaphore of -1", ValueOrOSError, lambda mp: mp.BoundedSemaphore(-1)),
    ("one release too many", ValueError, lambda mp: mp.BoundedSemaphore(1).release()),
    ("Lock not held", ValueError, lambda mp: mp.Lock().release()),
    ("RLock not held", AssertionError, lambda mp: mp.RLock().release()),
    ("acquire(timeout='x')", TypeError, lambda mp: mp.Lock().acquire(timeout="x")),
    ("wait('x')", TypeError, lambda mp: mp.Event().wait("x")),
    ("Barrier of 'x'", TypeError, lambda mp: mp.Barrier("x")),
    ("Value of no such typecode", TypeError, lambda mp: mp.Value("?!", 1)),
    ("Value with a wrong lock", AttributeError, lambda mp: mp.Value("i", 1, lock="no")),
    ("Value of 'x'", TypeError, lambda mp: mp.Value("i", "x")),
    ("Array of -1", ValueError, lambda mp: mp.Array("i", -1)),
    ("Array of 'x'", TypeError, lambda mp: mp.Array("i", "x")),
    ("index out of range", IndexError, lambda mp: mp.Array("i", 3)[3]),
    ("Pool of 0", ValueError, lambda mp: mp.Pool(0)),
    ("Pool of -1", ValueError, lambda mp: mp.Pool(-1)),
    ("Pool's initializer", TypeError, lambda mp: mp.Pool(1, initializer=3)),
    ("maxtasksperchild of 0", ValueError, lambda mp: mp.Pool(1, maxtasksperchild=0)),
    ("an unknown start method", ValueError, lambda mp: mp.get_context("thread")),
    ("join() before start()", AssertionError, lambda mp: mp.Process().join()),
    ("sentinel before start()", ValueError, lambda mp: mp.Process().sentinel),
    ("start() twice", AssertionError, lambda mp: started_again(mp)),
    ("Connection of -1", ValueError, lambda mp: mp.connection.Connection(-1)),
    ("poll('x')", TypeError, lambda mp: mp.Pipe()[0].poll("x")),
    ("send_bytes of text", TypeError, lambda mp: mp.Pipe()[0].send_bytes("text")),
    ("a negative size", ValueError, lambda mp: mp.Pipe()[0].send_bytes(b"abc", 0, -1)),
    ("an offset beyond", ValueError, lambda mp: mp.Pipe()[0].send_bytes(b"abc", 4)),
    ("a negative maximum", ValueOrOSError, lambda mp: mp.Pipe()[0].recv_bytes(-1)),
    ("receiving at the wrong end", OSError, lambda mp: mp.Pipe(duplex=False)[1].recv()),
    ("sending at the wrong end", OSError, lambda mp: mp.Pipe(duplex=False)[0].send(1)),
]


def full(mp):
    queue = mp.Queue(1)
    queue.put(1)
    return queue


def started_again(mp):
    process = mp.Process(target=identity, args=(1,))
    process.start()
    process.join()
    process.start()


@pytest.mark.parametrize(("name", "error", "call"), WRONG, ids=[row[0] for row in WRONG])
def test_wrong_use_raises(mp, name, error, call):
    import phalanx.connection  # noqa: F401

    with pytest.raises(error) as caught:
        call(mp)
    sentence(caught)


def test_negative_timeouts_do_not_wait(mp, ctx):
    assert mp.Event().wait(-1) is False
    with pytest.raises(stdlib_queue.Empty):
        mp.Queue().get(timeout=-1)
    with pytest.raises(stdlib_queue.Full):
        full(mp).put(2, timeout=-1)
    with mp.Lock() as _, mp.Semaphore(1) as _:
        pass
    lock = mp.Lock()
    lock.acquire()
    semaphore = mp.Semaphore(0)
    assert semaphore.acquire(timeout=-1) is False
    here, there = mp.Pipe()
    with here, there:
        assert here.poll(-1) is False
    stop = ctx.Event()
    process = ctx.Process(target=stop.wait)
    process.start()
    process.join(-1)
    assert process.exitcode is None
    stop.set()
    process.join()


def test_negative_sizes_of_queues_mean_no_limit(mp):
    queue = mp.Queue(-1)
    for number in range(1000):
        queue.put(number)
    assert not queue.full()
    assert [queue.get() for _ in range(1000)] == list(range(1000))


# --- closed and foreign handles -----------------------------------------------------------------


def test_closed_queue(mp):
    queue = mp.Queue()
    queue.put(1)
    queue.close()
    for call in (lambda: queue.put(2), queue.get):
        with pytest.raises(ValueError, match="is closed") as caught:
            call()
        sentence(caught)


def test_closed_connection(mp):
    here, there = mp.Pipe()
    here.close()
    for call in (lambda: here.send(1), here.recv, here.poll, here.fileno):
        with pytest.raises(OSError, match="closed") as caught:
            call()
        sentence(caught)
    with pytest.raises(EOFError):
        there.recv()
    with pytest.raises(OSError):
        there.send(1)
    there.close()


def test_closed_process(ctx):
    process = ctx.Process(target=identity, args=(1,))
    process.start()
    process.join()
    process.close()
    for call in (process.join, process.is_alive, process.terminate, process.start):
        with pytest.raises(ValueError, match="closed") as caught:
            call()
        sentence(caught)


def test_closed_pool(ctx):
    with ctx.Pool(1) as pool:
        pool.close()
        for call in (pool.apply, pool.apply_async, pool.map, pool.imap):
            with pytest.raises(ValueError, match="not running") as caught:
                call(identity, (1,))
            sentence(caught)
        pool.join()


MAKE_AND_PRINT = """
import pickle, phalanx
queue = phalanx.Queue()
queue.put("of another family")
print(pickle.dumps(queue).hex())
"""


def test_handle_of_another_family(mp):
    own = mp.Queue()
    done = run_python("-c", MAKE_AND_PRINT)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises((ValueError, RuntimeError, OSError)) as caught:
        pickle.loads(bytes.fromhex(done.stdout))
    assert "family" in sentence(caught)
    own.put(1)
    assert own.get() == 1


def test_handle_of_an_object_that_is_gone(mp):
    queue = mp.Queue()
    pickled = pickle.dumps(queue)
    del queue
    gc.collect()
    with pytest.raises((ValueError, RuntimeError, OSError)) as caught:
        pickle.loads(pickled)
    sentence(caught)


# --- an arena that is full ----------------------------------------------------------------------

FILL = """
import phalanx
queue = phalanx.Queue()
try:
    for _ in range(1000):
        queue.put(bytes(1 << 20))
except MemoryError as error:
    print(error)
kept = queue.qsize()
assert 0 < kept < 64, kept
for _ in range(kept):
    assert queue.get() == bytes(1 << 20)
assert queue.empty()
for round in range(100):  # what was read makes room again
    queue.put(bytes(1 << 20))
    queue.get()
"""


def test_full_arena_is_a_memory_error_that_names_the_limit_and_the_remedy():
    done = run_python("-c", FILL, env={"PHALANX_ARENA_LIMIT": str(64 << 20)})
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert str(64 << 20) in line
    assert "PHALANX_ARENA_LIMIT" in line


def test_wrong_arena_limit():
    done = run_python("-c", FILL, env={"PHALANX_ARENA_LIMIT": "plenty"})
    assert done.returncode == 1
    assert "PHALANX_ARENA_LIMIT" in done.stderr.splitlines()[-1]


# --- where it cannot run ------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_another_platform(platform):
    done = run_python("-c", f"import sys; sys.platform = {platform!r}; import phalanx")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "Linux" in last
    assert platform in last


NO_GUARD = """
import phalanx as mp

def work():
    pass

process = mp.get_context({method!r}).Process(target=work)
process.start()
process.join()
print("exit code", process.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_missing_main_guard_is_explained(method, tmp_path):
    program = tmp_path / "no_guard.py"
    program.write_text(NO_GUARD.format(method=method))
    done = run_python(program)
    assert done.stdout == "exit code 1\n"
    assert done.stderr.count("\nRuntimeError: ") == 1
    assert '__name__ == "__main__"' in done.stderr.replace("'", '"')


def test_import_makes_no_thread_and_no_descriptor():
    program = (
        "import os, threading; before = os.listdir('/proc/self/fd');"
        "import phalanx, phalanx.pool, phalanx.managers, phalanx.shared_memory;"
        "print(threading.active_count(), len(os.listdir('/proc/self/task')),"
        "os.listdir('/proc/self/fd') == before,"
        "'memfd' in open('/proc/self/maps').read())"
    )
    done = run_python("-c", program)
    assert (done.stdout, done.stderr) == ("1 1 True False\n", "")
