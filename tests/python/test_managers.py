"""Managers: what they make, who they serve, and what happens when a server or a client dies."""

from __future__ import annotations

import operator
import os
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque

import pytest

from phalanx import connection, managers
from phalanx.context import AuthenticationError, ProcessError
from phalanx.synchronize import AbandonedLockWarning
from processes import until


@pytest.fixture
def manager(mp):
    with mp.get_context("fork").Manager() as manager:
        yield manager


def killed(process) -> None:
    process.kill()
    process.join()


# What a manager makes --------------------------------------------------------------------------


def use_everything(m, outcome):
    m["list"].append(len(m["dict"]))
    m["dict"]["new"] = m["value"].value
    m["namespace"].answer = 42
    m["array"][1] = 7
    m["set"].add("new")
    m["counter"].update("aab")
    m["ordered"].move_to_end("first")
    m["default"]["missing"] += 3
    m["deque"].appendleft(0)
    m["event"].set()
    with m["lock"], m["rlock"], m["semaphore"], m["condition"]:
        m["queue"].put(["from", os.getpid()])
    outcome.send(m["list"][:])


def test_every_type_in_another_process(ctx):
    with ctx.Manager() as manager:
        m = {
            "list": manager.list([1, 2]),
            "dict": manager.dict(old=1),
            "value": manager.Value("i", 5),
            "namespace": manager.Namespace(),
            "array": manager.Array("i", [1, 2, 3]),
            "set": manager.set(["old"]),
            "counter": manager.Counter(b=1),
            "ordered": manager.OrderedDict(first=1, second=2),
            "default": manager.defaultdict(int),
            "deque": manager.deque([1, 2], 2),
            "event": manager.Event(),
            "lock": manager.Lock(),
            "rlock": manager.RLock(),
            "semaphore": manager.BoundedSemaphore(2),
            "condition": manager.Condition(),
            "queue": manager.Queue(),
        }
        ours, theirs = ctx.Pipe()
        process = ctx.Process(target=use_everything, args=(m, theirs))
        process.start()
        assert ours.recv() == [1, 2, 1]
        process.join()
        assert process.exitcode == 0
        assert m["dict"].copy() == {"old": 1, "new": 5}
        assert m["namespace"].answer == 42
        assert m["array"][:].tolist() == [1, 7, 3]
        assert m["set"] == {"old", "new"}
        assert m["counter"] == Counter(a=2, b=2)
        assert list(m["ordered"]) == ["second", "first"]
        assert m["default"] == {"missing": 3}
        assert m["deque"] == deque([0, 1])
        assert m["event"].is_set()
        assert m["queue"].get() == ["from", process.pid]


def test_dictionaries(manager):
    d = manager.dict(a=1)
    d |= {"b": 2}
    d.update([("c", 3)], d=4)
    assert (d | {"e": 5}, {"z": 0} | d) == (
        {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5},
        {"z": 0, "a": 1, "b": 2, "c": 3, "d": 4},
    )
    assert list(reversed(d)) == ["d", "c", "b", "a"]
    assert list(d) == list("abcd")
    assert dict(d) == d.copy()
    with pytest.raises(KeyError):
        d["none"]
    ordered = manager.OrderedDict(a=1, b=2)
    assert ordered.popitem(last=False) == ("a", 1)
    assert ordered == OrderedDict(b=2)
    default = manager.defaultdict(list)
    default["x"] += [1]
    assert (default["x"], default["y"], default.default_factory) == ([1], [], list)
    assert default == defaultdict(list, x=[1], y=[])


def test_lists_and_deques(manager):
    many = manager.list([3, 1, 2])
    many += (x for x in [5, 4])
    many.sort()
    assert many.copy() == [1, 2, 3, 4, 5]
    assert list(reversed(many)) == [5, 4, 3, 2, 1]
    many.clear()
    assert len(many) == 0
    few = manager.deque(maxlen=3)
    few += range(5)
    few.rotate(1)
    assert (list(few), few.maxlen, few[0], 2 in few) == ([4, 2, 3], 3, 4, True)
    few.extendleft([9])
    assert list(reversed(few)) == [2, 4, 9]


def test_sets(manager):
    s = manager.set([1, 2, 3])
    other = manager.set([3, 4])
    assert (s & other, s | {9}, {9, 1} - s, s ^ {1}) == ({3}, {1, 2, 3, 9}, {9}, {2, 3})
    s |= {4}
    s -= other
    s ^= {2, 7}
    assert s == {1, 7}
    s &= {7}
    assert (len(s), 7 in s, sorted(s), s <= {7, 8}, s.issubset([7])) == (1, True, [7], True, True)
    assert s.union([1], (2,)) == {1, 2, 7}
    with pytest.raises(TypeError):
        s |= [1]


@pytest.mark.parametrize("name", ["iadd", "isub", "ior", "iand"])
def test_counters_in_place(manager, name):
    operate = getattr(operator, name)
    for left, right in ((Counter("aab"), Counter("abc")), (Counter(a=-1), Counter(a=3, b=-2))):
        proxy = manager.Counter(left)
        same = operate(proxy, manager.Counter(right))
        assert same is proxy
        assert proxy == operate(Counter(left), right)
    with pytest.raises(TypeError):
        operate(proxy, 3)


def test_counters_with_everything_that_counts(manager):
    counter = manager.Counter("ab")
    counter.update(manager.Counter("b"))
    counter.update(x for x in "bc")
    counter.update({"c": 2}, d=1)
    counter.update(manager.dict(d=4))
    counter.subtract("a")
    counter.subtract(a=1)
    assert counter == Counter(a=-1, b=3, c=3, d=5)
    assert counter.total() == 10
    assert counter["nothing"] == 0
    plain = Counter()
    plain.update(counter)
    plain += counter
    assert plain == Counter(b=6, c=6, d=10)
    assert sum([counter, counter]) == plain
    assert (+counter, counter - plain) == (Counter(b=3, c=3, d=5), Counter())
    assert type(counter._getvalue()) is Counter
    assert str(manager.Counter("a")) == "Counter({'a': 1})"


def test_nested_objects_live_as_long_as_something_refers_to_them(manager):
    outer = manager.list()
    outer.append(manager.dict(a=1))
    outer.append(manager.Queue())
    outer[0]["b"] = outer
    outer[1].put("deep")
    assert outer[0]["b"][1].get() == "deep"
    assert outer[0]["a"] == 1
    inner = outer[0]
    outer.pop(0)
    assert inner["a"] == 1
    assert manager._number_of_objects() == 2
    del inner
    assert manager._number_of_objects() == 1


def test_a_proxy_on_its_way_out_of_its_only_owner(manager):
    q, items = manager.Queue(), manager.list()
    for number in range(20):
        q.put(manager.list([number]))
        items.append(manager.dict(n=number))
    for number in range(20):
        assert q.get()[0] == number
        assert items.pop(0)["n"] == number
    assert manager._number_of_objects() == 2


def test_results_that_stay_in_the_server(mp):
    class Mine(managers.BaseManager):
        pass

    Mine.register("squares", squares, proxytype=managers.IteratorProxy)
    Mine.register("Maker", Maker, method_to_typeid={"make": "Made"})
    Mine.register("Made", create_method=False)
    with Mine(ctx=mp.get_context("fork")) as manager:
        assert list(manager.squares(4)) == [0, 1, 4, 9]
        made = manager.Maker().make()
        made.append(3)
        assert made.count(3) == 1
        assert "append" in made._exposed_
        with pytest.raises(AttributeError):
            made.__len__()


def squares(n):
    return (i * i for i in range(n))


class Maker:
    def make(self):
        return []


def test_a_pool_in_the_server(manager):
    with manager.Pool(2) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
        assert pool.apply_async(abs, (-3,)).get(30) == 3
        assert sorted(pool.imap_unordered(abs, [-1, -2])) == [1, 2]


def test_errors_of_methods_and_of_requests(manager):
    with pytest.raises(IndexError, match="pop from empty list"):
        manager.list().pop()
    with pytest.raises(managers.RemoteError, match="not in exposed"):
        manager.list()._callmethod("__class__")
    with pytest.raises(managers.RemoteError, match="Unserializable"):
        manager.Barrier(1)._callmethod("__getattribute__", ("_native",))
    items = manager.list()
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        items.append(threading.Lock())
    items.append("usable all the same")
    assert items[:] == ["usable all the same"]
    nameless = managers.BaseManager()
    with pytest.raises(AssertionError, match="not yet started"):
        nameless._create("list")
    with pytest.raises(TypeError, match="callable"):
        nameless.start(initializer=3)
    with pytest.raises(ProcessError, match="Already started"):
        manager.start()
    manager.shutdown()
    with pytest.raises(ProcessError, match="shut down"):
        manager.start()
    with pytest.raises(AssertionError, match="shut down"):
        manager.list()


def test_an_object_that_is_gone(manager):
    items = manager.list()
    items._close()
    with pytest.raises(managers.RemoteError, match="no object"):
        items.append(1)


# Waiting ---------------------------------------------------------------------------------------


def test_the_queue_of_a_manager(manager):
    q = manager.Queue(2)
    q.put(1)
    q.put(2)
    assert (q.full(), q.qsize(), q.empty()) == (True, 2, False)
    with pytest.raises(queue.Full):
        q.put(3, timeout=0.05)
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    putter = threading.Thread(target=q.put, args=(3,))
    putter.start()
    assert [q.get() for _ in range(3)] == [1, 2, 3]
    putter.join()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)
    getter = threading.Thread(target=q.get)
    getter.start()
    q.put(4)
    getter.join()
    joiner = threading.Thread(target=q.join)
    joiner.start()
    for _ in range(4):
        assert joiner.is_alive()
        q.task_done()
    joiner.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


def test_conditions_share_locks_and_wake_whom_they_should(manager):
    lock = manager.Lock()
    condition = manager.Condition(lock)
    with pytest.raises(RuntimeError, match="un-acquired"):
        condition.notify()
    with lock:
        assert not condition.wait(0.02)
    woken = manager.Queue()

    def waiter(number):
        with condition:
            woken.put(("waits", number))
            condition.wait()
            woken.put(("woken", number))

    threads = [threading.Thread(target=waiter, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    assert sorted(woken.get() for _ in threads) == [("waits", n) for n in range(3)]
    with condition:
        condition.notify(1)
    assert woken.get()[0] == "woken"
    with condition:
        condition.notify_all()
    assert [woken.get()[0] for _ in range(2)] == ["woken"] * 2
    for thread in threads:
        thread.join()


def test_locks_refuse_what_threading_refuses(manager):
    for kind in ("Lock", "RLock"):
        lock = getattr(manager, kind)()
        with pytest.raises(RuntimeError):
            lock.release()
        with pytest.raises(ValueError, match="timeout"):
            lock.acquire(True, -2)
        with pytest.raises(ValueError, match="non-blocking"):
            lock.acquire(False, 1)
    bounded = manager.BoundedSemaphore(1)
    with pytest.raises(ValueError, match="too many times"):
        bounded.release()
    with pytest.raises(managers.RemoteError, match="parties"):
        manager.Barrier(0)


def test_an_rlock_belongs_to_a_thread(manager):
    lock = manager.RLock()
    assert lock.acquire() and lock.acquire()
    outcome = []
    other = threading.Thread(target=lambda: outcome.append(lock.acquire(False)))
    other.start()
    other.join()
    lock.release()
    lock.release()
    other = threading.Thread(target=lambda: outcome.append(lock.acquire(False)))
    other.start()
    other.join()
    assert outcome == [False, True]


@pytest.mark.parametrize("error", [InterruptedError, KeyError, KeyboardInterrupt])
def test_an_interrupted_call_leaves_no_answer_behind(manager, error):
    """The answer to an interrupted call must not be taken for that to the next one."""
    q, lock = manager.Queue(), manager.Lock()
    lock.acquire()

    def handler(*_args):
        raise error

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2))
        timer.start()
        with pytest.raises(error):
            q.get()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    q.put("item")
    assert q.qsize() == 1
    assert q.get() == "item"
    assert not lock.acquire(False)  # still held by this process
    lock.release()


# Deaths ----------------------------------------------------------------------------------------


def hold_and_wait(lock, rlock, semaphore, condition, ready):
    lock.acquire()
    rlock.acquire()
    rlock.acquire()
    semaphore.acquire()
    condition.acquire()
    ready.send("holding")
    signal.pause()


def test_what_a_killed_client_held_comes_back(ctx):
    with ctx.Manager() as manager:
        lock, rlock, condition = manager.Lock(), manager.RLock(), manager.Condition()
        semaphore = manager.BoundedSemaphore(1)
        ours, theirs = ctx.Pipe()
        holder = ctx.Process(target=hold_and_wait, args=(lock, rlock, semaphore, condition, theirs))
        holder.start()
        assert ours.recv() == "holding"
        assert not lock.acquire(False)
        killed(holder)
        for one in (lock, rlock, condition):
            with pytest.warns(AbandonedLockWarning):
                assert one.acquire(True, 30)
            one.release()
        assert semaphore.acquire(True, 30)
        semaphore.release()
        with pytest.raises(ValueError, match="too many times"):
            semaphore.release()


def take_and_wait(queue, ready):
    ready.send(queue.get())
    signal.pause()


def take_and_end(queue):
    queue.get()


@pytest.mark.parametrize("waits", [False, True])
def test_what_a_killed_client_had_taken_counts_as_done(manager, mp, waits):
    queue = manager.JoinableQueue()
    ours, theirs = mp.Pipe()
    worker = mp.Process(target=take_and_wait, args=(queue, theirs))
    if waits:
        worker.start()
    for item in range(3):
        queue.put(item)
    if not waits:
        worker.start()
    assert ours.recv() == 0
    # Who ends in good order may have handed on what it had.
    helper = mp.Process(target=take_and_end, args=(queue,))
    helper.start()
    helper.join()
    queue.get()
    queue.task_done()
    killed(worker)
    joiner = threading.Thread(target=queue.join)
    joiner.start()
    joiner.join(0.1)
    assert joiner.is_alive()
    queue.task_done()
    joiner.join(30)
    assert not joiner.is_alive()
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


def acquire_and_end(lock):
    lock.acquire()


def test_a_client_that_ends_in_good_order_keeps_its_locks(ctx):
    """As with the standard library: somebody else may be meant to release them."""
    with ctx.Manager() as manager:
        lock = manager.Lock()
        process = ctx.Process(target=acquire_and_end, args=(lock,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert not lock.acquire(False)
        lock.release()
        with pytest.raises(RuntimeError):
            lock.release()


def wait_for_ever(call, ready):
    ready.send("waiting")
    call()


@pytest.mark.parametrize("kind", ["lock", "semaphore", "event", "condition", "get", "put", "join"])
def test_killed_waiters_take_nothing(manager, mp, kind):
    """Several wait and are killed; then the thing is given, and who lives gets it."""
    ctx = mp.get_context("fork")
    lock, semaphore, event = manager.Lock(), manager.Semaphore(0), manager.Event()
    condition, q, full = manager.Condition(), manager.Queue(), manager.Queue(1)
    full.put("full")
    lock.acquire()

    def wait_notified():
        with condition:
            condition.wait()

    calls = {
        "lock": lock.acquire,
        "semaphore": semaphore.acquire,
        "event": event.wait,
        "condition": wait_notified,
        "get": q.get,
        "put": lambda: full.put("of the dead"),
        "join": full.join,
    }
    ours, theirs = ctx.Pipe()
    dead = [ctx.Process(target=wait_for_ever, args=(calls[kind], theirs)) for _ in range(2)]
    for process in dead:
        process.start()
        assert ours.recv() == "waiting"
    threads = threading.active_count()
    time.sleep(random.uniform(0, 0.2))  # killed anywhere on their way into the wait
    for process in dead:
        killed(process)
    living = threading.Thread(target=calls[kind])
    living.start()
    until(lambda: threading.active_count() > threads or not living.is_alive())
    lock.release()
    semaphore.release()
    event.set()
    q.put("item")
    if kind == "condition":
        while living.is_alive():
            with condition:
                condition.notify()
    if kind in ("put", "join"):
        full.get()
        full.task_done()
    living.join()
    if kind == "get":
        assert q.empty()
    if kind == "semaphore":
        assert not semaphore.acquire(False)


def test_a_killed_party_breaks_the_barrier(manager, mp):
    ctx = mp.get_context("fork")
    barrier = manager.Barrier(3)
    party = ctx.Process(target=barrier.wait)
    party.start()
    until(lambda: barrier.n_waiting == 1)
    outcome = []

    def wait():
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            outcome.append("broken")

    other = threading.Thread(target=wait)
    other.start()
    until(lambda: barrier.n_waiting == 2)
    killed(party)
    other.join()
    assert outcome == ["broken"]
    assert barrier.broken


def refer(proxies, ready):
    ready.send([str(proxy) for proxy in proxies])
    signal.pause()


def test_references_of_a_killed_client_are_given_back(ctx):
    with ctx.Manager() as manager:
        proxies = [manager.list([n]) for n in range(5)]
        ours, theirs = ctx.Pipe()
        process = ctx.Process(target=refer, args=(proxies, theirs))
        process.start()
        assert ours.recv() == [f"[{n}]" for n in range(5)]
        process._args = ()
        del proxies[1:]
        assert manager._number_of_objects() == 5
        killed(process)
        until(lambda: manager._number_of_objects() == 1)


def test_a_dead_server_is_named_in_every_client(ctx):
    manager = ctx.Manager()
    items, lock, q = manager.list([1]), manager.Lock(), manager.Queue()
    assert items[0] == 1
    errors = []

    def wait(call):
        try:
            call()
        except (EOFError, ConnectionError) as error:
            errors.append(str(error))

    lock.acquire()
    waiters = [threading.Thread(target=wait, args=(call,)) for call in (lock.acquire, q.get)]
    for waiter in waiters:
        waiter.start()
    killed(manager._process)
    for waiter in waiters:
        waiter.join()
    for call in (lambda: items.append(2), lambda: items[0], manager.list):
        with pytest.raises((EOFError, ConnectionError, FileNotFoundError)) as caught:
            call()
        errors.append(str(caught.value))
    assert len(errors) == 5
    for error in errors:
        assert repr(manager.address) in error
        assert "has ended or cannot be reached" in error
    manager.shutdown()


def test_a_server_dies_with_its_parent(start_method, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            import phalanx

            if __name__ == "__main__":
                manager = phalanx.get_context(sys.argv[1]).Manager()
                print(manager._process.pid, flush=True)
                sys.stdin.read()
            """)
    )
    with subprocess.Popen(
        [sys.executable, script, start_method],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    ) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
        until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def fail():
    sys.stderr = open(os.devnull, "w")
    raise RuntimeError("not today")


def test_a_server_that_cannot_start(ctx):
    manager = managers.SyncManager(ctx=ctx)
    with pytest.raises(EOFError, match="ended before it could serve, with exit code 1"):
        manager.start(fail)


# Other programs and other keys -----------------------------------------------------------------

# The interpreter whose standard library is talked to: by default the one that runs the tests.
OTHER_PYTHON = os.environ.get("PHALANX_OTHER_PYTHON", sys.executable)

KEY = b"a key of both"

SERVER = """
    import queue, sys
    from multiprocessing.managers import BaseManager

    items = queue.Queue()
    BaseManager.register("items", lambda: items)
    BaseManager.register("table", dict, exposed=("__setitem__", "get", "items"))
    server = BaseManager(("127.0.0.1", 0), sys.argv[1].encode()).get_server()
    print(server.address[1], flush=True)
    server.serve_forever()
"""

CLIENT = """
    import sys
    from multiprocessing.managers import SyncManager

    SyncManager.register("shared", None, None)
    manager = SyncManager(("127.0.0.1", int(sys.argv[1])), sys.argv[2].encode())
    manager.connect()
    q = manager.shared()
    q.put(q.get() + ["client"])
    names = manager.list(["one"])
    names.append("two")
    lock = manager.Lock()
    with lock:
        print(names[:], len(names), manager._number_of_objects())
"""


def standard(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [OTHER_PYTHON, "-E", "-c", textwrap.dedent(script), *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_server_of_the_standard_library():
    class Remote(managers.BaseManager):
        pass

    Remote.register("items")
    Remote.register("table", exposed=("__setitem__", "get", "items"))
    with standard(SERVER, KEY.decode()) as server:
        try:
            manager = Remote(("127.0.0.1", int(server.stdout.readline())), KEY)
            manager.connect()
            items = manager.items()
            items.put({"a": 1})
            assert (items.qsize(), items.get()) == (1, {"a": 1})
            with pytest.raises(queue.Empty):
                items.get_nowait()
            table = manager.table()
            table.__setitem__("key", "value")
            assert table.get("key") == "value"
            assert manager._number_of_objects() == 2
            del table
            assert manager._number_of_objects() == 1
            wrong = Remote(manager.address, b"another key")
            with pytest.raises(AuthenticationError):
                wrong.connect()
        finally:
            server.kill()
        server.wait()
        with pytest.raises((EOFError, ConnectionError), match="has ended"):
            items.put(1)


def test_a_client_of_the_standard_library(mp):
    class Serving(managers.SyncManager):
        pass

    Serving.register("shared", managers.Queue)
    manager = Serving(("127.0.0.1", 0), KEY, ctx=mp.get_context("fork"))
    with manager:
        local = manager.shared()
        address = manager.address
        # The client's own queue is another object: types are made anew for each that asks.
        with standard(CLIENT.replace("q.put(q.get()", "q.put([]"), address[1], "wrong") as client:
            assert client.wait() != 0
        local.put(["here"])
        with standard(CLIENT.replace("q.get()", "[]"), address[1], KEY.decode()) as client:
            assert client.stdout.read().strip() == "['one', 'two'] 2 4"
            assert client.wait() == 0
        assert local.get() == ["here"]


def test_a_remote_manager_of_this_package(mp, ctx):
    q: queue.Queue[int] = queue.Queue()

    class Remote(managers.BaseManager):
        pass

    Remote.register("q", callable=lambda: q)
    server = Remote(("127.0.0.1", 0), KEY).get_server()
    threading.Thread(target=accept_only, args=(server,), daemon=True).start()
    process = ctx.Process(target=put_remotely, args=(server.address,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert q.get(timeout=30) == 42
    server.listener.close()


def accept_only(server):
    server.accepter()


def put_remotely(address):
    class Remote(managers.BaseManager):
        pass

    Remote.register("q")
    manager = Remote(address, KEY)
    manager.connect()
    manager.q().put(42)


def test_a_proxy_finds_its_server_with_another_key(mp):
    """A proxy that comes out of a shared object has no key with it; its process has used one."""
    with managers.SyncManager(authkey=b"special", ctx=mp.get_context("fork")) as manager:
        outer = manager.list([manager.list([1])])
        assert outer[0][0] == 1


def test_a_second_server_at_the_same_address(mp):
    ctx = mp.get_context("fork")
    first = managers.SyncManager(("127.0.0.1", 0), KEY, ctx=ctx)
    first.start()
    address = first.address
    old = first.list([1])
    first.shutdown()
    second = managers.SyncManager(address, KEY, ctx=ctx)
    with second:
        new = second.list([2])
        assert new[0] == 2
        with pytest.raises((managers.RemoteError, EOFError, ConnectionError)):
            old.append(1)
        assert new[:] == [2]


def test_xml(mp):
    with managers.SyncManager(serializer="xmlrpclib", ctx=mp.get_context("fork")) as manager:
        items = manager.list([1, "two"])
        items.append(3.0)
        assert items[2] == 3.0


def test_a_hundred_threads(manager):
    total = manager.Value("i", 0)
    lock = manager.Lock()

    def add():
        with lock:
            total.value += 1

    threads = [threading.Thread(target=add) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total.value == 100


def test_no_descriptor_or_thread_stays_in_the_server(mp):
    class Counting(managers.SyncManager):
        pass

    Counting.register("state", State, exposed=("descriptors", "threads"))
    with Counting(ctx=mp.get_context("fork")) as manager:
        state = manager.state()
        manager.list().append(1)
        before = state.descriptors(), state.threads()
        ctx = mp.get_context("fork")
        items = manager.list()
        for _ in range(3):
            process = ctx.Process(target=items.append, args=(1,))
            process.start()
            process.join()
        until(lambda: (state.descriptors(), state.threads()) <= before)
        assert len(items) == 3


def use_once(items) -> int:
    """What a pool's task does with a proxy: it brings it, and it is gone with the task."""
    items.append(1)
    return id(managers.sessions.session_of(items._token.address, "pickle")._control)


def test_a_process_between_two_proxies_stays_connected(manager, mp):
    ctx = mp.get_context("fork")
    with ctx.Pool(1) as pool:
        items = manager.list()
        connections = {pool.apply(use_once, (items,)) for _ in range(5)}
        assert len(items) == 5 and len(connections) == 1


def test_a_process_stays_connected_to_a_few_servers_only(mp, monkeypatch):
    sessions = managers.sessions
    monkeypatch.setattr(sessions, "_MOST_IDLE", 1)
    ctx = mp.get_context("fork")
    with ctx.Manager() as one, ctx.Manager() as other:
        for manager in (one, other, one):
            items = manager.list([1])
            assert items[:] == [1]
            del items
            assert list(sessions._idle) == [manager.address]
            assert sessions.session_of(manager.address, "pickle").is_connected()
        assert not sessions.session_of(other.address, "pickle").is_connected()
    assert not sessions._idle


class State:
    def descriptors(self):
        return len(os.listdir("/proc/self/fd"))

    def threads(self):
        return threading.active_count()


def test_connections_of_clients_that_say_nothing_useful(manager):
    """The server goes on whatever strangers send it."""
    with connection.Client(manager.address) as stranger:
        stranger.send_bytes(b"nonsense")
    with connection.Client(manager.address, authkey=manager._authkey) as friend:
        friend.send("no request")
        assert friend.recv()[0] == "#TRACEBACK"
    with connection.Client(manager.address, authkey=manager._authkey) as friend:
        friend.send((None, "serve_forever", (), {}))
        kind, text = friend.recv()
        assert kind == "#TRACEBACK" and "serve_forever" in text
    assert manager.list([1])[0] == 1
