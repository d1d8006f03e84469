"""A manager's queues: used directly by the family, by others through the server."""

from __future__ import annotations

import os
import queue
import signal
import threading

import pytest

from phalanx import managers
from phalanx.managers import objects
from phalanx.queues import ShutDown
from processes import until
from remote_clients import KEY, Remote

_queues: list[managers.Queue] = []


def shared():
    """In the server: the one queue of everybody."""
    if not _queues:
        _queues.append(managers.Queue(3))
    return _queues[0]


class Serving(managers.SyncManager):
    pass


Serving.register("queue", shared)


@pytest.fixture
def serving(mp):
    with Serving(authkey=KEY, ctx=mp.get_context("fork")) as manager:
        yield manager


@pytest.fixture
def remote(serving):
    """Makes remote clients."""
    clients = []

    def start(package: str) -> Remote:
        clients.append(Remote(package, serving.address, ("queue",)))
        return clients[-1]

    yield start
    for client in clients:
        client.kill()
        client.process.stdin.close()
        client.process.stdout.close()


packages = pytest.mark.parametrize("package", ["multiprocessing", "phalanx"])


def in_thread(call, *args):
    """Begin a call in a thread; return how to wait for what comes of it."""
    outcome = []

    def run():
        try:
            outcome.append(call(*args))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def end():
        thread.join()
        return outcome[0]

    return end


# Directly --------------------------------------------------------------------------------------


def test_the_family_needs_no_server_for_plain_items(mp):
    with mp.get_context("fork").Manager() as manager:
        q, joinable = manager.Queue(2), manager.JoinableQueue()
        os.kill(manager._process.pid, signal.SIGSTOP)
        try:
            for item in (1, {"a": [b"b", None]}):
                q.put(item)
            assert (q.qsize(), q.full(), q.empty()) == (2, True, False)
            with pytest.raises(queue.Full):
                q.put_nowait(3)
            with pytest.raises(queue.Full):
                q.put(3, timeout=0.01)
            assert (q.get(), q.get_nowait()) == (1, {"a": [b"b", None]})
            for wrong in (q.get_nowait, lambda: q.get(False), lambda: q.get(True, 0.01)):
                with pytest.raises(queue.Empty):
                    wrong()
            for wrong in (lambda: q.get(timeout=-1), lambda: q.put(1, timeout=-1)):
                with pytest.raises(ValueError, match="non-negative"):
                    wrong()
            joinable.put("task")
            joinable.get()
            joinable.task_done()
            joinable.join()
            with pytest.raises(ValueError, match="too many times"):
                joinable.task_done()
        finally:
            os.kill(manager._process.pid, signal.SIGCONT)


def produce(q, numbers):
    assert q._direct is not None
    for number in numbers:
        q.put(number)


def test_between_children(ctx):
    with ctx.Manager() as manager:
        q = manager.Queue(5)
        children = [
            ctx.Process(target=produce, args=(q, range(n * 200, (n + 1) * 200))) for n in range(2)
        ]
        for child in children:
            child.start()
        numbers = [q.get() for _ in range(400)]
        for child in children:
            child.join()
            assert child.exitcode == 0
        assert sorted(numbers) == list(range(400)) and q.empty()


def put_list(q, numbers):
    q.put(numbers)


def test_as_an_argument_of_a_pools_tasks(manager_of_all, mp):
    q = manager_of_all.Queue()
    with mp.get_context("fork").Pool(2) as pool:
        pool.starmap(put_list, [(q, [n]) for n in range(10)])
    assert sorted(q.get() for _ in range(10)) == [[n] for n in range(10)]


@pytest.fixture
def manager_of_all(mp):
    with mp.get_context("fork").Manager() as manager:
        yield manager


def get_and_report(q, outcome):
    inner, lock = q.get()
    inner.append("child")
    with lock:
        outcome.send(inner[:])


def test_shared_objects_live_in_a_queue(mp, manager_of_all):
    """The server keeps what would be gone before it is taken."""
    ctx = mp.get_context("fork")
    q = manager_of_all.Queue()
    ours, theirs = ctx.Pipe()
    child = ctx.Process(target=get_and_report, args=(q, theirs))
    child.start()
    q.put((manager_of_all.list(["parent"]), manager_of_all.Lock()))
    assert ours.recv() == ["parent", "child"]
    child.join()
    assert child.exitcode == 0
    q.put([ctx.Lock(), ctx.Queue()])
    q.put("plain")
    q.put({"list": manager_of_all.list([1])})
    lock, inner = q.get()
    inner.put(1)
    with lock:
        assert inner.get() == 1
    assert q.get() == "plain"
    assert q.get_nowait()["list"][:] == [1]
    until(lambda: manager_of_all._number_of_objects() == 1)


def test_what_cannot_be_pickled(manager_of_all):
    q = manager_of_all.Queue()
    with pytest.raises((TypeError, AttributeError), match="pickle"):
        q.put(threading.Lock())
    q.put(1)
    assert q.get() == 1


def test_shutdown(manager_of_all):
    q, full = manager_of_all.Queue(), manager_of_all.Queue(1)
    full.put(0)
    getter, putter, joiner = in_thread(q.get), in_thread(full.put, 1), in_thread(full.join)
    q.shutdown()
    assert isinstance(getter(), ShutDown)
    full.shutdown(immediate=True)
    assert isinstance(putter(), ShutDown)
    assert joiner() is None
    for wrong in (q.get, full.get, lambda: q.put(1), lambda: q.put(manager_of_all.list())):
        with pytest.raises(ShutDown):
            wrong()


# With others -----------------------------------------------------------------------------------


@packages
def test_a_queue_of_everybody(serving, remote, package):
    q = serving.queue()
    client = remote(package)
    q.put([1, "one"])
    assert client.ask("queue.get()") == "[1, 'one']"
    assert client.ask("[queue.put(n) for n in range(3)]") == "[None, None, None]"
    assert client.ask("(queue.qsize(), queue.full(), queue.empty())") == "(3, True, False)"
    assert client.ask("queue.put_nowait(3)") == client.ask("queue.put(3, timeout=0.01)") == "Full"
    client.begin("queue.put(3)")
    assert [q.get() for _ in range(4)] == [0, 1, 2, 3]
    assert client.end() == "None"
    assert client.ask("queue.get_nowait()") == client.ask("queue.get(timeout=0.01)") == "Empty"
    client.begin("queue.get()")
    q.put("late")
    assert client.end() == "'late'"
    waiting = in_thread(q.get)
    assert client.ask("queue.put('later')") == "None"
    assert waiting() == "later"
    client.begin("queue.join()", "joiner")
    for _ in range(6):
        q.task_done()
    assert client.ask("queue.task_done()") == "None"
    assert client.end("joiner") == "None"
    assert client.ask("queue.task_done()") == "ValueError"


def test_proxies_reach_other_families(serving, remote):
    q = serving.queue()
    client = remote("phalanx")
    q.put(serving.list([1, 2]))
    assert client.ask("queue.get()[:]") == "[1, 2]"
    assert client.ask("queue.put(queue)") == "None"
    assert q.get().qsize() == 0


def test_an_item_of_a_remote_client_that_is_killed(serving, remote):
    q = serving.queue()
    client = remote("phalanx")
    q.put(1)
    assert client.ask("queue.get()") == "1"
    waiting = in_thread(q.join)
    client.kill()  # what it had taken counts as done
    assert waiting() is None


@packages
@pytest.mark.parametrize("method", ["get", "put"])
def test_a_remote_waiter_that_is_killed(serving, remote, package, method):
    q = serving.queue()
    client = remote(package)
    if method == "put":
        for n in range(3):
            q.put(n)
        client.begin("queue.put('of the dead')")
        client.kill()
        assert [q.get() for _ in range(3)] == [0, 1, 2]
        with pytest.raises(queue.Empty):
            q.get(timeout=0.3)
    else:
        client.begin("queue.get()")
        client.kill()
        q.put("item")
        assert q.get(timeout=30) == "item"


def test_what_could_not_be_delivered_goes_back():
    q = managers.Queue(1)
    for put_meanwhile in (False, True):
        q.put("taken")
        taken = q.get()
        if put_meanwhile:
            q.put("next")
        objects.unget(q, taken)
        items = [q.get() for _ in range(1 + put_meanwhile)]
        assert sorted(items) == ["next", "taken"][1 - put_meanwhile :]
        for _ in items:
            q.task_done()
        q.join()


# Deaths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shut_down", [False, True])
def test_who_waits_hears_of_the_end_of_the_server(mp, shut_down):
    manager = mp.get_context("fork").Manager()
    empty, full = manager.Queue(), manager.Queue(1)
    full.put(1)
    waiting = [
        in_thread(empty.get),
        in_thread(lambda: empty.get(True, 3600)),
        in_thread(full.put, 2),
        in_thread(full.join),
    ]
    if shut_down:
        manager.shutdown()
    else:
        manager._process.kill()
        manager._process.join()
    for end in waiting:
        error = end()
        assert isinstance(error, (EOFError, ConnectionError, FileNotFoundError))
        assert repr(manager.address) in str(error)
    manager.shutdown()
