"""Programs whose processes are killed, stopped or ill-behaved: what must go on and what must go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from queue import Empty

import pytest

from processes import descendants, is_running


def square(number):
    return number * number


def sleep(_=None):
    time.sleep(600)


def use_all(queue, lock, value, event, condition):
    with lock:
        value.value += 1
    queue.put(1)
    with condition:
        condition.notify()
    event.is_set()


def until_gone(pids):
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [pid for pid in pids if is_running(pid)]


def test_start_while_threads_use_everything(ctx):
    """A child neither inherits a lock that nobody will release, nor finds half a module."""
    queue, lock, value = ctx.Queue(), ctx.Lock(), ctx.Value("i")
    event, condition = ctx.Event(), ctx.Condition()
    stop, failures = threading.Event(), []

    def hammer():
        try:
            while not stop.is_set():
                queue.put(0)
                with lock, value.get_lock():
                    event.set()
                    event.clear()
                with condition:
                    condition.notify_all()
                short_lived = ctx.Queue()
                short_lived.put(bytes(100_000))
                short_lived.get()
                ctx.Array("i", 100)
                with suppress(Empty):  # the children and the other thread take some, too
                    while True:
                        queue.get(timeout=0.01)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
            for _ in range(3):
                children = [
                    ctx.Process(target=use_all, args=(queue, lock, value, event, condition))
                    for _ in range(3)
                ]
                for child in children:
                    child.start()
                for child in children:
                    child.join(60)
                    assert child.exitcode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert value.value == 9


PROGRAM = """
import os, sys, threading, time
import phalanx as mp
from phalanx.connection import Listener
from phalanx.shared_memory import SharedMemory

def compute(_):
    os.write(1, b"busy\\n")
    sum(iter(int, 1))  # in C code for ever

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    listener = Listener()
    memory = SharedMemory(create=True, size=10)
    print(listener.address, os.path.dirname(listener.address), "/dev/shm/" + memory.name)
    sys.stdout.flush()
    manager = ctx.Manager()
    manager.dict()
    kept = []
    def make():
        kept.append(ctx.Pool(2))
        kept.append(kept[0].map_async(compute, range(2), 1))
    maker = threading.Thread(target=make)  # its end is not the program's
    maker.start()
    maker.join()
    time.sleep(600)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_killed_program_leaves_no_process_and_no_file(start_method, how, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, script, start_method],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    paths = program.stdout.readline().split()
    assert len(paths) == 3 and all(map(os.path.exists, paths))
    assert [program.stdout.readline() for _ in range(2)] == ["busy\n"] * 2
    family = descendants(program.pid)
    os.kill(program.pid, getattr(signal, how))
    program.wait()
    program.stdout.close()
    assert until_gone(family) == []
    assert [path for path in paths if os.path.exists(path)] == []


def have_pool(connection, method):
    import phalanx

    pool = phalanx.get_context(method).Pool(2)
    pool.map_async(sleep, range(2), 1)
    connection.send([worker.pid for worker in pool._pool])
    time.sleep(600)


def test_workers_of_a_killed_child_end_with_it(ctx, start_method):
    here, there = ctx.Pipe()
    child = ctx.Process(target=have_pool, args=(there, start_method))
    child.start()
    workers = here.recv()
    child.kill()
    child.join()
    assert until_gone(workers) == []


def set_queue(queue):
    report.queue = queue


def report():
    report.queue.put(os.getpid())


def report_and_stop(_):
    report()
    os.kill(os.getpid(), signal.SIGSTOP)


def report_and_sleep():
    report()
    sleep()


def test_stopped_workers_can_be_terminated(ctx, monkeypatch):
    monkeypatch.setattr("phalanx.pool.GRACE", 0.2)
    queue = ctx.Queue()
    pool = ctx.Pool(2, set_queue, (queue,))
    pool.map_async(report_and_stop, range(2), 1)
    workers = [queue.get(timeout=60) for _ in range(2)]
    pool.terminate()
    pool.join()
    assert until_gone(workers) == []


TRACKED = """
import os, signal, sys, warnings
import phalanx as mp
from phalanx.resource_tracker import _resource_tracker
from phalanx.shared_memory import SharedMemory

def write(name):
    memory = SharedMemory(name)
    memory.buf[:3] = b"abc"
    memory.close()

def remove(name):
    memory = SharedMemory(name)
    memory.close()
    memory.unlink()

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])

    def run(function, memory):
        child = ctx.Process(target=function, args=(memory.name,))
        child.start()
        child.join(60)
        assert child.exitcode == 0

    before, elsewhere = (SharedMemory(create=True, size=100) for _ in range(2))
    run(remove, elsewhere)  # which the first tracker was told, and the next must not miss
    elsewhere.close()
    os.kill(_resource_tracker._pid, signal.SIGKILL)
    os.waitid(os.P_PID, _resource_tracker._pid, os.WEXITED | os.WNOWAIT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        after = SharedMemory(create=True, size=100)
    assert "died unexpectedly" in str(caught[0].message)
    run(write, after)
    assert bytes(after.buf[:3]) == b"abc"
    for memory in (before, after):
        memory.close()
        memory.unlink()
    if sys.argv[1] == "forkserver":
        from phalanx.forkserver import _forkserver
        _forkserver._stop()  # or it would hold the tracker's pipe
    _resource_tracker._stop()
    assert _resource_tracker._exitcode == 0, "it knew other names than these two"
"""


def test_a_killed_resource_tracker_is_replaced_and_knows_what_it_has_to(start_method, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(TRACKED)
    subprocess.run([sys.executable, script, start_method], check=True, timeout=100)


def test_a_killed_fork_server_costs_the_tasks_under_way(mp):
    from phalanx import forkserver

    ctx = mp.get_context("forkserver")
    queue = ctx.Queue()
    with ctx.Pool(2, set_queue, (queue,)) as pool:
        lost = [pool.apply_async(report_and_sleep) for _ in range(2)]
        for _ in lost:
            queue.get(timeout=60)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        for result in lost:
            with pytest.raises(mp.pool.WorkerDied):
                result.get(60)
        assert pool.apply_async(square, (3,)).get(60) == 9


def test_children_that_nobody_may_wait_for(ctx, mp):
    """With SIGCHLD ignored the system reaps them, and keeps no exit status."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child = ctx.Process(target=square, args=(1,))
        child.start()
        child.join(60)
        assert child.exitcode is not None
        with ctx.Pool(2) as pool:
            with pytest.raises(mp.pool.WorkerDied):
                pool.apply_async(os._exit, (3,)).get(60)
            assert pool.apply_async(square, (3,)).get(60) == 9
    finally:
        signal.signal(signal.SIGCHLD, before)


def receive_until_none(connection, results):
    count = 0
    while (message := connection.recv()) is not None:
        assert message == message[:1] * len(message)
        count += 1
    results.send(count)


def receive(connection):
    while True:
        connection.recv()


def test_receivers_killed_beside_another_at_the_same_end(ctx):
    here, there = ctx.Pipe()
    results, report = ctx.Pipe()
    survivor = ctx.Process(target=receive_until_none, args=(there, report))
    survivor.start()
    for number in range(5):
        victim = ctx.Process(target=receive, args=(there,))
        victim.start()
        for size in (10, 5_000, 300_000) * 7:
            here.send(bytes([number]) * size)
        victim.kill()
        victim.join()
    here.send(None)
    assert results.poll(60)
    assert results.recv() <= 5 * 21
    survivor.join()


def wait_in(function, connection):
    connection.send("about to wait")
    try:
        function()
    except (EOFError, OSError) as error:
        connection.send(error)


@pytest.mark.parametrize("kind", ["Queue", "Lock", "Event"])
def test_a_killed_server_is_an_error_for_who_waits_in_it(ctx, kind):
    with ctx.Manager() as manager:
        proxy = getattr(manager, kind)()
        if kind == "Lock":
            proxy.acquire()
        wait = {"Queue": "get", "Lock": "acquire", "Event": "wait"}[kind]
        here, there = ctx.Pipe()
        client = ctx.Process(target=wait_in, args=(getattr(proxy, wait), there))
        client.start()
        assert here.recv() == "about to wait"
        manager._process.kill()
        assert here.poll(60)
        assert isinstance(here.recv(), (EOFError, OSError))
        client.join()
