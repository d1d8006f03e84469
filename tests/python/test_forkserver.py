"""The fork server: fresh surroundings at each start, and who survives whom."""

from __future__ import annotations

import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from processes import is_running, run_python


@pytest.fixture
def ctx(mp):
    return mp.get_context("forkserver")


@pytest.fixture
def server(mp):
    from phalanx.forkserver import _forkserver

    _forkserver.ensure_running()
    return _forkserver


def ask(ctx, target, *args):
    here, there = ctx.Pipe()
    process = ctx.Process(target=target, args=(there, *args))
    process.start()
    answer = here.recv()
    process.join()
    assert process.exitcode == 0
    return answer


def surroundings(connection):
    umask = os.umask(0)
    connection.send((dict(os.environ), os.getcwd(), umask, sys.argv, sys.path))


def test_surroundings_are_those_of_the_start(ctx, tmp_path, monkeypatch):
    ask(ctx, surroundings)
    monkeypatch.setenv("PHALANX_TEST_NEW", "1")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", "argument"])
    monkeypatch.syspath_prepend(str(tmp_path))
    before = os.umask(0o027)
    try:
        environ, directory, umask, argv, path = ask(ctx, surroundings)
    finally:
        os.umask(before)
    assert environ == dict(os.environ)
    assert directory == str(tmp_path)
    assert (umask, argv) == (0o027, ["program", "argument"])
    assert path == sys.path


def write(connection, text):
    os.write(1, text)
    connection.send(None)


def test_output_goes_where_the_parent_writes_now(ctx, tmp_path):
    ask(ctx, write, b"")  # the server has been started with the old standard output
    kept = os.dup(1)
    with open(tmp_path / "out", "wb") as file:
        os.dup2(file.fileno(), 1)
    try:
        ask(ctx, write, b"redirected")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert (tmp_path / "out").read_bytes() == b"redirected"


def wait_for(event):
    event.wait()


def wait_until(condition):
    while not condition():
        time.sleep(0.01)


def test_another_server_follows_one_that_died(ctx, server):
    event = ctx.Event()
    process = ctx.Process(target=wait_for, args=(event,))
    process.start()
    first = server._forkserver_pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # until then it may still serve
    assert ask(ctx, surroundings)
    assert server._forkserver_pid != first
    # The child of the first one goes on, and its end is seen, if not how it ended.
    assert process.is_alive()
    event.set()
    process.join()
    assert process.exitcode in (0, 255)


def nothing():
    pass


def test_every_start_has_an_end_whatever_is_killed_meanwhile(ctx, server):
    """Also a child killed before it could tell its pid: its status is not taken for one."""
    started: queue.Queue[bool] = queue.Queue()

    def kill_at_random():
        # One for each start, so that no start can lose all its attempts.
        dice = random.Random(1)
        while started.get():
            time.sleep(dice.uniform(0, 0.01))
            pid = server._forkserver_pid
            with suppress(OSError, TypeError):
                # A server without a child is still being started.
                if children := children_of(pid):
                    os.kill(dice.choice([pid, *children[-1:] * 5]), signal.SIGKILL)

    killer = threading.Thread(target=kill_at_random)
    killer.start()
    try:
        processes = []
        for _ in range(60):
            process = ctx.Process(target=nothing)
            process.start()
            started.put(True)
            processes.append(process)
        for process in processes:
            process.join()
    finally:
        started.put(False)
        killer.join()
    assert {process.exitcode for process in processes} <= {0, 255, -signal.SIGKILL}
    assert ask(ctx, parent_of)


def parent_of(connection):
    connection.send((os.getpid(), os.getppid()))


def test_ready_child_that_is_killed_is_replaced(ctx, server):
    ask(ctx, parent_of)
    for _ in range(3):
        wait_until(lambda: children_of(server._forkserver_pid))
        os.kill(children_of(server._forkserver_pid)[0], signal.SIGKILL)
        assert ask(ctx, parent_of)[1] == server._forkserver_pid


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def grandchild(connection):
    import phalanx

    ctx = phalanx.get_context("forkserver")
    connection.send(ask(ctx, parent_of)[1] == os.getppid())


def test_children_use_the_same_server(ctx):
    assert ask(ctx, grandchild)


PRELOADED = """
import phalanx
lock = phalanx.Lock()
value = phalanx.Event()
print("loaded", flush=True)
"""

PROGRAM = """
import sys
import phalanx as mp

def child(queue, lock):
    import preloaded
    with lock, preloaded.lock:
        queue.put(preloaded.value.is_set())
        preloaded.value.set()

if __name__ == "__main__":
    mp.set_forkserver_preload(["preloaded"])
    ctx = mp.get_context("forkserver")
    queue, lock = ctx.Queue(), ctx.Lock()
    for _ in range(2):
        process = ctx.Process(target=child, args=(queue, lock))
        process.start()
        process.join()
        print(queue.get(), process.exitcode, flush=True)
"""


def test_preloaded_module_that_makes_shared_objects(tmp_path):
    (tmp_path / "preloaded.py").write_text(PRELOADED)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run_python(tmp_path / "program.py")
    # Made once, in the server, and common to its children.
    assert (done.stdout, done.stderr) == ("loaded\nFalse 0\nTrue 0\n", "")


ORPHANS = """
import os, sys, time
import phalanx as mp

def child(ready):
    ready.set()
    time.sleep(600)

if __name__ == "__main__":
    ctx = mp.get_context("forkserver")
    pids = []
    for daemon in (True, False):
        ready = ctx.Event()
        process = ctx.Process(target=child, args=(ready,), daemon=daemon)
        process.start()
        ready.wait()
        pids.append(process.pid)
    from phalanx.forkserver import _forkserver
    with open("pids", "w") as file:
        print(*pids, _forkserver._forkserver_pid, file=file)
    os.kill(os.getpid(), 9)
"""


def test_daemons_end_with_their_client_and_the_server_with_the_last(tmp_path):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    # No pipe: the survivors would keep it open.
    subprocess.run(
        [sys.executable, "orphans.py"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    daemon, other, server = map(int, (tmp_path / "pids").read_text().split())
    wait_until(lambda: not is_running(daemon))
    assert is_running(other)
    assert is_running(server)
    os.kill(other, signal.SIGKILL)
    wait_until(lambda: not is_running(server))


def count_descriptors(connection):
    connection.send(len(os.listdir("/proc/self/fd")))


def test_children_have_no_more_descriptors_when_there_are_more(ctx):
    event = ctx.Event()
    alone = ask(ctx, count_descriptors)
    others = [ctx.Process(target=wait_for, args=(event,)) for _ in range(5)]
    for process in others:
        process.start()
    assert ask(ctx, count_descriptors) == alone
    event.set()
    for process in others:
        process.join()


def test_preload_names_have_to_be_strings(ctx):
    with pytest.raises(TypeError, match="module_names must be a list of strings"):
        ctx.set_forkserver_preload([1, 2])


IGNORED = """
import signal, sys
import phalanx as mp

def child():
    print(signal.getsignal(signal.SIGCHLD).name, flush=True)
    sys.exit(7)

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    process = mp.get_context("forkserver").Process(target=child)
    process.start()
    process.join()
    print(process.exitcode)
"""


def test_exit_codes_are_seen_with_sigchld_ignored(tmp_path):
    (tmp_path / "ignored.py").write_text(IGNORED)
    assert run_python(tmp_path / "ignored.py").stdout == "SIG_IGN\n7\n"
