"""Idle is free: what has nothing to do does not wake up to find that out.

Who waits for somebody in particular (a lock's owner, the others at a barrier) does, to see whether
they live: see "Waiting" in ARCHITECTURE.md. So does who waits for a manager's lock, queue and the
like, once a second, to see whether the server does.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

import processes


def switches() -> dict[str, int]:
    """How often each thread of each process that this one has started has gone to sleep."""
    counts = {}
    for pid in processes.descendants(os.getpid()):
        for thread in Path(f"/proc/{pid}/task").glob("*/status"):
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = dict(line.split(":\t", 1) for line in thread.read_text().splitlines())
                counts[thread.parent.name] = int(fields["voluntary_ctxt_switches"])
    return counts


def assert_nobody_wakes(at_least: int) -> None:
    """One second in which no thread woke; a few are granted for what is still settling."""
    for _ in range(20):
        before = switches()
        time.sleep(1)
        after = switches()
        assert len(after) >= at_least, "somebody has ended"
        if before == after:
            return
    woken = {thread: after[thread] - before.get(thread, 0) for thread in after}
    raise AssertionError(f"threads woke in every second, in the last one {woken} times")


def identity(item):
    return item


def call(method, reached):
    reached.set()
    method()


def test_an_idle_pool(ctx):
    with ctx.Pool(2) as pool:
        assert pool.map(identity, range(100)) == list(range(100))
        assert_nobody_wakes(2)
        assert pool.apply(identity, (1,)) == 1


@pytest.mark.parametrize("waits_for", ["queue", "pipe", "event", "condition"])
def test_who_waits_for_somebody_unknown(mp, waits_for):
    ctx = mp.get_context("fork")
    queue, (reader, writer), event = ctx.Queue(), ctx.Pipe(False), ctx.Event()
    condition, reached = ctx.Condition(), ctx.Event()

    def wait():
        with condition:
            reached.set()
            condition.wait()

    def notify():
        with condition:
            condition.notify()

    method, end = {
        "queue": (queue.get, lambda: queue.put(None)),
        "pipe": (reader.recv, lambda: writer.send(None)),
        "event": (event.wait, event.set),
        "condition": (wait, notify),
    }[waits_for]
    process = ctx.Process(target=call, args=(method, reached))
    process.start()
    reached.wait()
    assert_nobody_wakes(1)
    end()
    process.join()
    assert process.exitcode == 0


def look_and_call(numbers, method, reached):
    assert numbers[0] == 1
    call(method, reached)


def test_an_idle_manager_and_its_clients(mp):
    ctx = mp.get_context("fork")
    with ctx.Manager() as manager:
        numbers, reached, end = manager.list([1]), ctx.Event(), ctx.Event()
        client = ctx.Process(target=look_and_call, args=(numbers, end.wait, reached))
        client.start()
        reached.wait()
        assert numbers[0] == 1
        assert_nobody_wakes(3)
        end.set()
        client.join()
        assert client.exitcode == 0


def test_a_fork_server_between_two_starts(mp):
    ctx = mp.get_context("forkserver")
    process = ctx.Process(target=identity, args=(1,))
    process.start()
    process.join()
    assert_nobody_wakes(2)  # the server and the child that it has ready
