"""A start that something breaks off, at each of its instructions in turn: nothing is left of it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import phalanx
from phalanx import _phalanx, context, forkserver, process, resource_tracker

PACKAGE = os.path.dirname(phalanx.__file__)
# Whose instructions are broken off: the start's own, not those of pickling and of the child.
FILES = ("process.py", "popen_fork.py", "popen_spawn_posix.py", "popen_forkserver.py", "context.py")
OTHERS = ("pickle_for_child", "start")
READY = 2  # children that a fork server keeps


def wait_for_ever(event):
    event.wait()


class Breaker:
    """Raises KeyboardInterrupt before the ``nth`` instruction of a start."""

    def __init__(self, nth):
        self.left = nth
        self.pid = os.getpid()
        self.at = None

    def start(self, child):
        try:
            self._watch(child.start)
        except KeyboardInterrupt:
            pass

    def _instruction(self, code, offset):
        if os.getpid() == self.pid:
            self.left -= 1
            if self.left == 0:
                self.at = f"{code.co_name} of {os.path.basename(code.co_filename)}, {offset}"
                raise KeyboardInterrupt

    if sys.version_info >= (3, 12):

        def _watch(self, call):
            tool, events = sys.monitoring.PROFILER_ID, sys.monitoring.events
            sys.monitoring.use_tool_id(tool, "breaker")
            sys.monitoring.register_callback(tool, events.INSTRUCTION, self._event)
            sys.monitoring.set_events(tool, events.INSTRUCTION)
            try:
                call()
            finally:
                sys.monitoring.set_events(tool, 0)
                sys.monitoring.free_tool_id(tool)

        def _event(self, code, offset):
            if not is_watched(code):
                return sys.monitoring.DISABLE
            return self._instruction(code, offset)

    else:

        def _watch(self, call):
            tracer = sys.gettrace()
            sys.settrace(self._called)
            try:
                call()
            finally:
                sys.settrace(tracer)

        def _called(self, frame, event, arg):
            if not is_watched(frame.f_code):
                return None
            frame.f_trace_opcodes = True
            return self._event

        def _event(self, frame, event, arg):
            if event == "opcode":
                self._instruction(frame.f_code, frame.f_lasti)
            return self._event


def is_watched(code):
    folder, name = os.path.split(code.co_filename)
    return folder == PACKAGE and (name in FILES or code.co_name in OTHERS)


def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing
            pass
    return found


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def no_child_is_left(at):
    server = forkserver._forkserver._forkserver_pid
    deadline = time.monotonic() + 60
    while True:
        own = [pid for pid in children_of(os.getpid()) if int(pid) != server]
        if not own and (server is None or len(children_of(server)) <= READY):
            return
        # Only the server may still be busy.
        assert server is not None and not own and time.monotonic() < deadline, at
        time.sleep(0.001)


def places():
    """How many more members the family may have."""
    reserved = []
    try:
        while True:
            reserved.append(_phalanx.reserve_child())
    except Exception:
        pass
    for place in reserved:
        _phalanx.cancel_child(place)
    return len(reserved)


def new(ctx, event):
    return ctx.Process(target=wait_for_ever, args=(event,))


def end(child):
    child.kill()
    child.join()
    child.close()


def break_off_everywhere(method):
    ctx = phalanx.get_context(method)
    event = ctx.Event()
    resource_tracker._resource_tracker.reserve()
    for _ in range(3):
        child = new(ctx, event)
        Breaker(0).start(child)
        end(child)
    del child
    gc.collect()
    no_child_is_left("before")
    before, blocks, free = descriptors(), _phalanx.arena_usage(), places()
    started = 0
    for nth in range(1, 100_000):
        child, breaker = new(ctx, event), Breaker(nth)
        breaker.start(child)
        at = f"{method}, broken off at {breaker.at}"
        if child in process._children:
            # It came when all was done: as if it had come after the call.
            assert child.is_alive(), at
            end(child)
            started += 1
        else:
            assert child._popen is None and child.exitcode is None, at
        assert child not in process._children
        del child
        assert context.get_spawning_popen() is None or breaker.at.startswith(("pickle", "set_")), at
        no_child_is_left(at)
        assert descriptors() == before, at
        assert _phalanx.arena_usage() == blocks, at
        if breaker.at is None:
            break
    assert nth > 100 and started <= 4, started
    assert places() == free


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_nothing_is_left(method):
    # In a process of its own, which has nothing but this to count.
    subprocess.run([sys.executable, __file__, method], check=True, timeout=500)


def test_a_start_may_be_tried_again(monkeypatch):
    ctx = phalanx.get_context("fork")
    event = ctx.Event()
    event.set()
    child = new(ctx, event)
    with monkeypatch.context() as patch:
        patch.setattr(
            "phalanx.popen_fork.Popen._keep", lambda self: (_ for _ in ()).throw(KeyError("now"))
        )
        with pytest.raises(KeyError):
            child.start()
    assert child.exitcode is None and child not in phalanx.active_children()
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_popen_that_nobody_keeps_ends_its_child():
    ctx = phalanx.get_context("fork")
    popen = ctx.Process._Popen(new(ctx, ctx.Event()))
    pid = popen.pid
    del popen
    gc.collect()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


if __name__ == "__main__":
    break_off_everywhere(sys.argv[1])
