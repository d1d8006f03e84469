"""The package's names with threads."""

from __future__ import annotations

import threading

import pytest

from phalanx import dummy
from phalanx.dummy import connection


def test_processes_are_threads():
    seen = []
    process = dummy.Process(target=lambda: seen.append(dummy.current_process()))
    assert process.exitcode is None
    process.start()
    process.join()
    assert seen == [process]
    assert process.exitcode == 0
    release = threading.Event()
    process = dummy.Process(target=release.wait)
    process.start()
    assert dummy.active_children() == [process]
    release.set()
    process.join()
    assert dummy.active_children() == []


def test_a_thread_of_any_kind_may_start_some():
    seen = []

    def start():
        process = dummy.Process(target=seen.append, args=(1,))
        process.start()
        process.join()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert seen == [1]


def test_started_by_another_thread():
    process = dummy.Process(target=print)
    errors = []

    def start():
        try:
            process.start()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "can only be started by" in errors[0]


def test_pipes_and_listeners():
    here, there = dummy.Pipe()
    assert not there.poll()
    assert not there.poll(0.02)
    sender = threading.Timer(0.02, here.send, ("hello",))
    sender.start()
    assert there.poll(None)
    assert there.recv() == "hello"
    sender.join()
    with connection.Listener() as listener:
        outcome = []
        client = threading.Thread(
            target=lambda: outcome.append(connection.Client(listener.address).recv())
        )
        client.start()
        with listener.accept() as conn:
            conn.send(1)
        client.join()
    assert outcome == [1]
    with pytest.raises(OSError, match="closed"):
        listener.accept()


def test_the_rest():
    assert dummy.Manager() is dummy
    assert dummy.Manager().dict(a=1) == {"a": 1}
    value = dummy.Value("i", 3)
    value.value += 1
    assert repr(value) == "<Value('i', 4)>"
    assert dummy.Array("i", [1, 2])[1] == 2
    assert repr(dummy.Namespace(a=1, _b=2)) == "Namespace(a=1)"
    q = dummy.JoinableQueue()
    q.put(1)
    q.get()
    q.task_done()
    q.join()
    dummy.freeze_support()
    dummy.shutdown()
    with dummy.Pool(2) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
