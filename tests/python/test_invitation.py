"""Children that another library's Popen starts, by the standard library's protocol."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

from phalanx import _phalanx, context, process, reduction

CHILD = "import pickle, sys; sys.exit(pickle.load(open(int(sys.argv[1]), 'rb'))._bootstrap())"


class Descriptor:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        return self.fd


class Popen:
    """What such a Popen has to do and to have, and no more."""

    DupFd = Descriptor

    def __init__(self, process_obj: process.BaseProcess) -> None:
        self.passed: list[int] = []
        context.set_spawning_popen(self)
        try:
            pickled = bytes(reduction.ForkingPickler.dumps(process_obj))
        finally:
            context.set_spawning_popen(None)
        reader, writer = os.pipe()
        command = [sys.executable, "-c", CHILD, str(reader)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.child = subprocess.Popen(command, pass_fds=[reader, *self.passed], env=environment)
        self.pid = self.child.pid
        self.sentinel = os.pidfd_open(self.pid)
        os.close(reader)
        with open(writer, "wb") as file:
            file.write(pickled)

    def duplicate_for_child(self, fd: int) -> int:
        self.passed.append(fd)
        return fd

    def poll(self) -> int | None:
        return self.child.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        return self.child.wait(timeout)

    def close(self) -> None:
        os.close(self.sentinel)


class Process(process.BaseProcess):
    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj):  # noqa: N802
        return Popen(process_obj)


@pytest.fixture
def spawn(mp):
    return mp.get_context("spawn")


def test_shared_objects_come_along(spawn):
    queue, value, event = spawn.Queue(), spawn.Value("i", 41), spawn.Event()
    ours, theirs = spawn.Pipe()
    child = Process(target=_phalanx_work, args=(queue, value, event, theirs))
    child.start()
    # The parent may let go of what only the child uses.
    del theirs
    event.set()
    ours.send({"a": 1})
    assert (queue.get(timeout=60), ours.recv()) == (os.getpid(), {"a": 1})
    child.join()
    assert (child.exitcode, value.value) == (0, 42)
    child.close()
    ours.close()


def _phalanx_work(queue, value, event, pipe):
    event.wait(60)
    with value:
        value.value += 1
    queue.put(os.getppid())
    pipe.send(pipe.recv())


def test_what_the_child_held_is_given_back(spawn):
    def blocks() -> int:
        return _phalanx.arena_usage()[0]

    before = blocks()
    event = spawn.Event()
    child = Process(target=event.wait, args=())
    child.start()
    del event  # now the child alone holds it
    assert blocks() > before
    child._popen.child.kill()
    child.join()
    child.close()
    assert blocks() == before


def test_a_child_that_gets_nothing_shared_needs_no_place():
    child = Process(target=print, args=())
    child.start()
    assert child._popen.passed == []
    child.join()
    assert child.exitcode == 0
    child.close()


def test_a_member_that_gets_an_invitation_stays_who_it_is(spawn):
    """As when the bytes for a child are unpickled by the parent itself."""

    class Sink(Popen):
        def __init__(self) -> None:
            self.passed = []

    lock = spawn.Lock()
    context.set_spawning_popen(Sink())
    try:
        pickled = bytes(reduction.ForkingPickler.dumps([lock, lock, spawn.Event()]))
    finally:
        context.set_spawning_popen(None)
    first, second, _ = pickle.loads(pickled)
    with lock:
        assert not first.acquire(block=False) and second is first
    _phalanx.reap_all()
