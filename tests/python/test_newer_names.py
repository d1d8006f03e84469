"""What newer Pythons have added to multiprocessing is here on every version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import processes
from phalanx import dummy
from phalanx.reduction import ForkingPickler

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


PRELOAD = """
import sys
import phalanx


def work():
    print("worked", flush=True)


if __name__ == "__main__":
    ctx = phalanx.get_context("forkserver")
    ctx.set_forkserver_preload(["no_such_module_at_all"], on_error=sys.argv[1])
    process = ctx.Process(target=work)
    try:
        process.start()
        process.join()
    except (EOFError, ConnectionError) as error:
        print(type(error).__mro__[-2].__name__, *getattr(error, "__notes__", []))
"""


@pytest.mark.parametrize("on_error", ["ignore", "warn", "fail"])
def test_modules_that_cannot_be_preloaded(tmp_path, on_error):
    program = tmp_path / "program.py"
    program.write_text(PRELOAD)
    done = processes.run_python(program, on_error, options=("-W", "always::ImportWarning"))
    assert done.returncode == 0, done.stderr
    if on_error == "fail":
        assert "worked" not in done.stdout and "ModuleNotFoundError" in done.stderr
        if sys.version_info >= (3, 11):
            assert "Forkserver process may have crashed" in done.stdout
    else:
        assert done.stdout == "worked\n"
    if on_error == "ignore":
        assert done.stderr == ""
    if on_error == "warn":
        assert "ImportWarning: Failed to preload module 'no_such_module_at_all'" in done.stderr


def test_preload_takes_three_words(mp):
    with pytest.raises(ValueError, match="on_error must be 'ignore', 'warn', or 'fail'"):
        mp.set_forkserver_preload(["os"], on_error="perhaps")
    with pytest.raises(TypeError, match="must be a list of strings"):
        mp.set_forkserver_preload([1])


class Heir:
    """The least that a Process object is: `connect_to_new_process` takes any."""

    def __init__(self, fd_index, code):
        self.fd_index, self.code = fd_index, code

    def _bootstrap(self, parent_sentinel=None):
        from phalanx.forkserver import get_inherited_fds

        fd = get_inherited_fds()[self.fd_index]
        os.write(fd, f"{os.getpid()} {parent_sentinel is not None}".encode())
        if self.code < 0:
            os.kill(os.getpid(), -self.code)
        return self.code


@pytest.mark.parametrize("code", [0, 7, -signal.SIGKILL])
def test_connect_to_new_process(code):
    from phalanx import context, forkserver, spawn

    out_r, out_w = os.pipe()
    status_r, data_w = forkserver.connect_to_new_process([out_w])
    os.close(out_w)
    context.set_spawning_popen(context)  # secrets may be pickled for a child
    try:
        with open(data_w, "wb") as data:
            ForkingPickler(data, 4).dump(spawn.get_preparation_data("heir"))
            ForkingPickler(data, 4).dump(Heir(0, code))
    finally:
        context.set_spawning_popen(None)
    pid = forkserver.read_signed(status_r)
    with open(out_r) as out:
        assert out.read() == f"{pid} True"
    assert forkserver.read_signed(status_r) == code
    assert os.read(status_r, 1) == b""
    os.close(status_r)
