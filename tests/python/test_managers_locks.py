"""A manager's locks and their kin: used directly by the family, by others through the server."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from phalanx import managers
from phalanx.managers import locks
from phalanx.synchronize import AbandonedLockWarning
from processes import until
from remote_clients import KEY, Remote

KINDS = {
    "lock": (locks.Lock, (), managers.AcquirerProxy),
    "rlock": (locks.RLock, (), managers.AcquirerProxy),
    "semaphore": (locks.Semaphore, (0,), managers.AcquirerProxy),
    "bounded": (locks.BoundedSemaphore, (1,), managers.AcquirerProxy),
    "event": (locks.Event, (), managers.EventProxy),
    "condition": (locks.Condition, (), managers.ConditionProxy),
    "over_lock": (locks.Condition, (locks.Lock,), managers.ConditionProxy),
    "barrier": (locks.Barrier, (2,), managers.BarrierProxy),
}

_made: dict[str, object] = {}


def shared(name: str):
    """In the server: the one object of that name."""
    if name not in _made:
        kind, args, _proxy = KINDS[name]
        _made[name] = kind(*[arg() if isinstance(arg, type) else arg for arg in args])
    return _made[name]


class Serving(managers.SyncManager):
    pass


for _name, (_kind, _args, _proxy) in KINDS.items():
    Serving.register(_name, lambda name=_name: shared(name), _proxy)


@pytest.fixture
def serving(mp):
    with Serving(authkey=KEY, ctx=mp.get_context("fork")) as manager:
        yield manager


@pytest.fixture
def remote(serving, request):
    """Makes remote clients of the package that the test's parameter names."""
    clients = []

    def start(package: str, *names: str) -> Remote:
        clients.append(Remote(package, serving.address, names))
        return clients[-1]

    yield start
    for client in clients:
        client.kill()
        client.process.stdin.close()
        client.process.stdout.close()


packages = pytest.mark.parametrize("package", ["multiprocessing", "phalanx"])


class Doing(threading.Thread):
    """A call in a thread of its own, and what came of it."""

    def __init__(self, call, *args) -> None:
        super().__init__()
        self._call, self._args, self.outcome = call, args, None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call(*self._args)
        except Exception as error:
            self.outcome = error

    def end(self):
        self.join()
        return self.outcome


# Directly --------------------------------------------------------------------------------------


def use_all(proxies):
    """Use everything in ways that do not block."""
    assert all(proxy._direct is not None for proxy in proxies)
    lock, rlock, semaphore, bounded, event, condition, barrier = proxies
    for one in (lock, rlock, bounded, condition):
        with one:
            assert one.locked()
        assert not one.locked()
    semaphore.release()
    assert semaphore.acquire(timeout=30) and not semaphore.acquire(False)
    assert not semaphore.acquire(timeout=0.01)
    event.clear()
    assert not event.wait(0.01)
    event.set()
    assert event.is_set() and event.wait()
    with condition:
        assert not condition.wait(0.01)
        assert condition.wait_for(lambda: True)
        condition.notify(2)
        condition.notify_all()
    assert barrier.wait() == 0
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (1, 0, False)


def all_of(manager):
    return [
        manager.Lock(),
        manager.RLock(),
        manager.Semaphore(0),
        manager.BoundedSemaphore(1),
        manager.Event(),
        manager.Condition(),
        manager.Barrier(1),
    ]


def test_the_family_needs_no_server_for_what_does_not_block(mp):
    with mp.get_context("fork").Manager() as manager:
        proxies = all_of(manager)
        os.kill(manager._process.pid, signal.SIGSTOP)
        try:
            use_all(proxies)
        finally:
            os.kill(manager._process.pid, signal.SIGCONT)


def test_children_use_them_directly(ctx):
    with ctx.Manager() as manager:
        proxies = all_of(manager)
        process = ctx.Process(target=use_all, args=(proxies,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert proxies[4].is_set()


def add(lock, condition, total, turns):
    for turn in range(turns):
        with lock if turn % 2 else condition:
            total.value += 1


def test_they_exclude_each_other(ctx):
    total = ctx.RawValue("i", 0)
    with ctx.Manager() as manager:
        lock = manager.RLock()
        condition = manager.Condition(lock)
        args = (lock, condition, total, 500)
        processes = [ctx.Process(target=add, args=args) for _ in range(2)]
        for process in processes:
            process.start()
        add(*args)
        # Also by way of the server.
        for _ in range(50):
            manager_side(lock, "acquire")
            total.value += 1
            manager_side(lock, "release")
        for process in processes:
            process.join()
            assert process.exitcode == 0
    assert total.value == 1550


def manager_side(proxy, method, *args):
    """As a client does that cannot use the object itself."""
    direct, proxy._direct = proxy._direct, None
    try:
        return proxy._callmethod(method, args)
    finally:
        proxy._direct = direct


def test_calls_by_name_are_for_the_same_object(serving):
    lock = serving.rlock()
    assert lock._callmethod("acquire") and lock.acquire()
    assert manager_side(lock, "acquire", False) is False
    lock._callmethod("release")
    lock.release()
    assert manager_side(lock, "acquire", False) is True
    assert not lock.acquire(False)
    manager_side(lock, "release")
    semaphore = serving.semaphore()
    manager_side(semaphore, "release", 3)
    assert [semaphore.acquire(False) for _ in range(4)] == [True, True, True, False]


class Odd(locks.Lock):
    def release(self):
        super().release()
        return "released"


def test_what_only_the_server_can_do_stays_there(mp):
    class Mine(Serving):
        pass

    ran = mp.RawValue("i", 0)

    def action():
        ran.value = os.getpid()

    Mine.register("Odd", Odd, managers.AcquirerProxy)
    Mine.register("half", locks.Lock, exposed=("acquire",))
    Mine.register("meeting", lambda: locks.Barrier(1, action), managers.BarrierProxy)
    with Mine(ctx=mp.get_context("fork")) as manager:
        odd, half, meeting = manager.Odd(), manager.half(), manager.meeting()
        assert odd.acquire() and odd.release() == "released"
        assert half.acquire() and not half.acquire(False)
        with pytest.raises(managers.RemoteError, match="not in exposed"):
            half._callmethod("release")
        assert meeting.wait() == 0
        assert ran.value == manager._process.pid


# With others -----------------------------------------------------------------------------------


@packages
def test_locks_of_everybody(serving, remote, package):
    lock, rlock, bounded = serving.lock(), serving.rlock(), serving.bounded()
    client = remote(package, "lock", "rlock", "bounded")
    for name, one in (("lock", lock), ("rlock", rlock), ("bounded", bounded)):
        assert client.ask(f"{name}.acquire()") == "True"
        assert not one.acquire(False) and not one.acquire(timeout=0.06)
        waiting = Doing(one.acquire)
        assert client.ask(f"{name}.release()") == "None"
        assert waiting.end() is True
        if name == "rlock":
            one._close()  # the thread that holds it has ended
            break
        assert client.ask(f"{name}.acquire(False)") == "False"
        client.begin(f"{name}.acquire()")
        one.release()
        assert client.end() == "True"
        one.release()  # anybody may
    assert client.ask("lock.release()") == "RuntimeError"


@packages
def test_an_rlock_of_everybody(serving, remote, package):
    rlock = serving.rlock()
    client = remote(package, "rlock")
    assert client.ask("rlock.acquire() and rlock.acquire()") == "True"
    assert client.ask("rlock.acquire(False)", "other") == "False"
    with pytest.raises(RuntimeError, match="un-acquired"):
        rlock.release()
    assert client.ask("rlock.release()", "other") == "RuntimeError"
    assert client.ask("rlock.release()") == "None"
    assert not rlock.acquire(False)
    assert client.ask("rlock.release()") == "None"
    with rlock, rlock:
        assert client.ask("rlock.acquire(False)") == "False"
        assert client.ask("rlock.release()") == "RuntimeError"
    assert client.ask("rlock.acquire(False)") == "True"


@packages
def test_events_and_barriers_of_everybody(serving, remote, package):
    event, barrier = serving.event(), serving.barrier()
    client = remote(package, "event", "barrier")
    client.begin("event.wait()")
    event.set()
    assert client.end() == "True"
    event.clear()
    waiting = Doing(event.wait)
    assert client.ask("event.set()") == "None"
    assert waiting.end() is True
    for _ in range(3):
        waiting = Doing(barrier.wait)
        assert {client.ask("barrier.wait()"), repr(waiting.end())} == {"0", "1"}
    client.begin("barrier.wait()")
    until(lambda: barrier.n_waiting == 1)
    barrier.abort()
    assert client.end() == "BrokenBarrierError"
    assert client.ask("barrier.broken") == "True"


@packages
@pytest.mark.parametrize("name", ["condition", "over_lock"])
def test_conditions_of_everybody(serving, remote, package, name):
    condition = getattr(serving, name)()
    client = remote(package, name)
    assert client.ask(f"{name}.notify()") == "RuntimeError"
    assert client.ask(f"{name}.acquire()") == "True"
    client.begin(f"{name}.wait()")
    with condition:
        condition.notify()
    assert client.end() == "True"
    assert client.ask(f"{name}.release()") == "None"

    def wait():
        with condition:
            waits.set()
            return condition.wait()

    waits = threading.Event()
    waiting = Doing(wait)
    waits.wait()
    assert client.ask(f"{name}.acquire()") == "True"
    assert client.ask(f"{name}.notify_all()") == "None"
    assert client.ask(f"{name}.release()") == "None"
    assert waiting.end() is True


# Deaths ----------------------------------------------------------------------------------------


def test_what_a_remote_client_held_comes_back(serving, remote):
    names = ("lock", "rlock", "bounded", "condition")
    proxies = [getattr(serving, name)() for name in names]
    client = remote("phalanx", *names)
    for name in names:
        assert client.ask(f"{name}.acquire()") == "True"
    others = remote("phalanx", "event")
    assert others.ask("event.set()") == "None"
    assert not any(proxy.acquire(False) for proxy in proxies)
    client.kill()
    for name, proxy in zip(names, proxies):
        if name == "bounded":
            assert proxy.acquire()
        else:
            with pytest.warns(AbandonedLockWarning):
                assert proxy.acquire()
        proxy.release()


@packages
def test_what_a_remote_client_leaves_locked_stays_locked(serving, remote, package):
    lock, bounded = serving.lock(), serving.bounded()
    client = remote(package, "lock", "bounded")
    assert client.ask("lock.acquire()") == client.ask("bounded.acquire()") == "True"
    client.leave()
    for one in (lock, bounded):
        assert not one.acquire(timeout=0.2)
        one.release()
        assert one.acquire(False)


@packages
@pytest.mark.parametrize("name", ["lock", "semaphore", "condition", "barrier"])
def test_a_remote_waiter_that_is_killed(serving, remote, package, name):
    proxy = getattr(serving, name)()
    client = remote(package, name)
    if name == "barrier":
        client.begin("barrier.wait()")
        until(lambda: proxy.n_waiting == 1)
        client.kill()
        until(lambda: proxy.broken)
        return
    if name == "condition":
        assert client.ask("condition.acquire()") == "True"
        client.begin("condition.wait()")
        with proxy:
            pass  # it waits
        client.kill()
        woken = []

        def wait():
            with proxy:
                woken.append(proxy.wait())

        waiting = Doing(wait)
        while not woken:
            with proxy:
                proxy.notify()
        waiting.end()
        return
    if name == "lock":
        proxy.acquire()
    client.begin(f"{name}.acquire()")
    client.kill()
    proxy.release()
    assert proxy.acquire()


WAITS = {
    "lock": lambda proxy: proxy.acquire,
    "rlock": lambda proxy: proxy.acquire,
    "semaphore": lambda proxy: proxy.acquire,
    "bounded": lambda proxy: lambda: proxy.acquire(timeout=3600),
    "event": lambda proxy: proxy.wait,
    "condition": lambda proxy: lambda: wait_in(proxy),
    "over_lock": lambda proxy: lambda: wait_in(proxy),
    "barrier": lambda proxy: proxy.wait,
}


def wait_in(condition):
    with condition:
        condition.wait()


@pytest.mark.parametrize("shut_down", [False, True])
def test_who_waits_hears_of_the_end_of_the_server(mp, shut_down):
    manager = Serving(authkey=KEY, ctx=mp.get_context("fork"))
    manager.start()
    proxies = {name: getattr(manager, name)() for name in KINDS}
    for name in ("lock", "rlock", "bounded"):
        assert proxies[name].acquire()
    waiting = {name: Doing(WAITS[name](proxies[name])) for name in KINDS}
    until(lambda: proxies["barrier"].n_waiting == 1)
    address = manager.address
    if shut_down:
        manager.shutdown()
    else:
        manager._process.kill()
        manager._process.join()
    for name, doing in waiting.items():
        error = doing.end()
        assert isinstance(error, (EOFError, ConnectionError, FileNotFoundError)), (name, error)
        assert repr(address) in str(error), name
    manager.shutdown()


def test_a_wait_can_be_interrupted(serving):
    class Interrupt(Exception):
        pass

    def handler(*_args):
        raise Interrupt

    proxies = {name: getattr(serving, name)() for name in KINDS}
    taken = Doing(lambda: [proxies[name].acquire() for name in ("lock", "rlock", "bounded")])
    assert taken.end() == [True] * 3
    before = signal.signal(signal.SIGUSR2, handler)
    try:
        for name, proxy in proxies.items():
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2))
            timer.start()
            with pytest.raises(Interrupt):
                WAITS[name](proxy)()
            timer.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not proxies["condition"].locked() and proxies["barrier"].n_waiting == 0
