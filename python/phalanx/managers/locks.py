"""Locks and their kin that live in a manager's server.

They answer to the same calls as those of `threading`, and differ in two ways: they are handed over
in the order in which they were asked for, and they come back when the process that holds them is
gone (see `clients`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from threading import BrokenBarrierError
from typing import Any

from .clients import Client, Session, Waiter, current, time_limit

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]


class Line:
    """A line of waiters, under a mutex that is only held for moments."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._line: deque[Waiter] = deque()

    def _wait(
        self, waiter: Waiter, limit: float | None, refuse: Callable[[Waiter], object]
    ) -> bool:
        """Wait in the line; return whether it was worth it.

        Should the client be gone when its turn has come, `refuse` is called under the mutex to give
        back what it was given.
        """
        try:
            if waiter.sleep(limit):
                return True
        except BaseException:
            with self._mutex:
                if waiter.granted:
                    refuse(waiter)
                else:
                    self._line.remove(waiter)
            raise
        with self._mutex:
            if not waiter.granted:
                self._line.remove(waiter)
            return waiter.granted


def _limit_of_acquire(blocking: bool, timeout: float | None) -> float | None:
    if timeout is None or timeout == -1:
        return None
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout < 0:
        raise ValueError("timeout value must be a non-negative number")
    return time_limit(timeout)


class Permits(Line):
    """What can be acquired and released."""

    def _take(self, client: Client) -> bool:
        """Give a permit to a client if there is one. Called under the mutex."""
        raise NotImplementedError

    def _give_back(self, client: Client) -> None:
        """Take a permit back. Called under the mutex."""
        raise NotImplementedError

    def _serve(self) -> None:
        """Hand out what there is to those who wait. Called under the mutex."""
        while self._line and self._take(self._line[0].client):
            self._line.popleft().wake()

    def _refuse(self, waiter: Waiter) -> None:
        self._give_back(waiter.client)
        self._serve()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        limit = _limit_of_acquire(blocking, timeout)
        client = current()
        with self._mutex:
            if (not self._line or self._is_mine(client)) and self._take(client):
                return True
            if not blocking:
                return False
            waiter = Waiter(client)
            self._line.append(waiter)
        return self._wait(waiter, limit, self._refuse)

    def release(self) -> None:
        with self._mutex:
            self._give_back(current())
            self._serve()

    def locked(self) -> bool:
        """Whether somebody would have to wait."""
        raise NotImplementedError

    def _is_mine(self, client: Client) -> bool:
        return False

    # What a Condition needs of its lock, called under no mutex.

    def _is_owned(self, client: Client) -> bool:
        return self.locked()

    def _release_all(self) -> int:
        self.release()
        return 1

    def _acquire_again(self, count: int) -> None:
        for _ in range(count):
            self.acquire()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Lock(Permits):
    """A lock that any thread may release."""

    def __init__(self) -> None:
        super().__init__()
        self._holder: Client | None = None

    def _take(self, client: Client) -> bool:
        if self._holder is not None:
            return False
        self._holder = client
        client.session.hold(self)
        return True

    def _give_back(self, client: Client) -> None:
        if self._holder is None:
            raise RuntimeError("release unlocked lock")
        holder, self._holder = self._holder, None
        holder.session.let_go(self)

    def _abandon(self, session: Session) -> None:
        with self._mutex:
            if self._holder is not None and self._holder.session is session:
                self._give_back(self._holder)
                self._serve()

    def locked(self) -> bool:
        return self._holder is not None

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<{state} manager {type(self).__name__} at {id(self):#x}>"


class RLock(Lock):
    """A lock that its owner may acquire again, and that only its owner may release."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def _is_mine(self, client: Client) -> bool:
        return self._holder is not None and self._holder.owner == client.owner

    def _take(self, client: Client) -> bool:
        if not self._is_mine(client) and not super()._take(client):
            return False
        self._count += 1
        return True

    def _give_back(self, client: Client) -> None:
        if not self._is_mine(client):
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if self._count == 0:
            super()._give_back(client)

    def _abandon(self, session: Session) -> None:
        with self._mutex:
            if self._holder is not None and self._holder.session is session:
                self._count = 0
                super()._give_back(self._holder)
                self._serve()

    def _is_owned(self, client: Client) -> bool:
        return self._is_mine(client)

    def _release_all(self) -> int:
        count = self._count
        for _ in range(count):
            self.release()
        return count


class Semaphore(Permits):
    """A counter that is never below zero. Nobody owns what it counts."""

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        super().__init__()
        self._value = value

    def _take(self, client: Client) -> bool:
        if self._value == 0:
            return False
        self._value -= 1
        return True

    def _give_back(self, client: Client) -> None:
        self._value += 1

    def release(self, n: int = 1) -> None:
        if n < 1:
            raise ValueError("n must be one or more")
        with self._mutex:
            self._check_release(n)
            for _ in range(n):
                self._give_back(current())
            self._serve()

    def _check_release(self, n: int) -> None:
        pass

    def get_value(self) -> int:
        return self._value

    def locked(self) -> bool:
        return self._value == 0

    def __repr__(self) -> str:
        return f"<manager {type(self).__name__} at {id(self):#x}: value={self._value}>"


class BoundedSemaphore(Semaphore):
    """A semaphore that never rises above its first value; the dead's permits come back."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
        self._initial_value = value
        # Who holds the permits that are out, the latest last.
        self._holders: list[Session] = []

    def _take(self, client: Client) -> bool:
        taken = super()._take(client)
        if taken:
            self._holders.append(client.session)
            client.session.hold(self)
        return taken

    def _give_back(self, client: Client) -> None:
        super()._give_back(client)
        # One process may release what another has acquired: then the earliest is meant.
        mine = client.session in self._holders
        holder = client.session if mine else self._holders[0]
        self._holders.remove(holder)
        holder.let_go(self)

    def _check_release(self, n: int) -> None:
        if self._value + n > self._initial_value:
            raise ValueError("Semaphore released too many times")

    def _abandon(self, session: Session) -> None:
        with self._mutex:
            while session in self._holders:
                self._holders.remove(session)
                session.let_go(self)
                self._value += 1
            self._serve()


class Condition(Line):
    """A lock, and a line of those who have let go of it to wait for news."""

    def __init__(self, lock: Any = None) -> None:
        super().__init__()
        self._lock: Permits = RLock() if lock is None else lock
        if not isinstance(self._lock, Permits):
            raise TypeError(
                "a manager's Condition needs a lock or semaphore of the same manager, not"
                f" {type(lock).__name__}"
            )

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def wait(self, timeout: float | None = None) -> bool:
        client = current()
        if not self._lock._is_owned(client):
            raise RuntimeError("cannot wait on un-acquired lock")
        limit = time_limit(timeout)
        waiter = Waiter(client)
        with self._mutex:
            self._line.append(waiter)
        count = self._lock._release_all()
        notified = self._wait(waiter, limit, self._pass_on)
        self._lock._acquire_again(count)
        return notified

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        limit = time_limit(timeout)
        result = predicate()
        while not result:
            left = None if limit is None else limit - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        if not self._lock._is_owned(current()):
            raise RuntimeError("cannot notify on un-acquired lock")
        with self._mutex:
            for _ in range(min(n, len(self._line))):
                self._line.popleft().wake()

    def notify_all(self) -> None:
        self.notify(len(self._line))

    def _pass_on(self, waiter: Waiter) -> None:
        """The notified client is gone: its notification is for the next."""
        if self._line:
            self._line.popleft().wake()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<manager Condition({self._lock!r}, {len(self._line)})>"


class Event(Line):
    """A flag that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._flag = False

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        with self._mutex:
            self._flag = True
            while self._line:
                self._line.popleft().wake()

    def clear(self) -> None:
        with self._mutex:
            self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        limit = time_limit(timeout)
        with self._mutex:
            if self._flag:
                return True
            waiter = Waiter(current())
            self._line.append(waiter)
        return self._wait(waiter, limit, lambda _waiter: None)

    def __repr__(self) -> str:
        return f"<manager Event at {id(self):#x}: {'set' if self._flag else 'unset'}>"


class Barrier(Line):
    """Lets its parties go on when all of them are there; breaks when one is gone."""

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
    ) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        super().__init__()
        self._parties = parties
        self._action = action
        self._timeout = timeout
        self._broken = False

    @property
    def parties(self) -> int:
        return self._parties

    @property
    def n_waiting(self) -> int:
        with self._mutex:  # not while the line is being let go, one by one
            return len(self._line)

    @property
    def broken(self) -> bool:
        return self._broken

    def wait(self, timeout: float | None = None) -> int:
        limit = time_limit(self._timeout if timeout is None else timeout)
        with self._mutex:
            if self._broken:
                raise BrokenBarrierError
            index = len(self._line)
            if index + 1 == self._parties:
                try:
                    if self._action is not None:
                        self._action()
                except BaseException:
                    self._break()
                    raise
                self._let_all_go(True)
                return index
            waiter = Waiter(current())
            self._line.append(waiter)
        try:
            passed = self._wait(waiter, limit, lambda _waiter: None)
        except BaseException:
            self.abort()  # the client is gone, and the round will never be whole
            raise
        if not passed:
            self.abort()
        if not (passed and waiter.item):
            raise BrokenBarrierError
        return index

    def reset(self) -> None:
        with self._mutex:
            self._let_all_go(False)
            self._broken = False

    def abort(self) -> None:
        with self._mutex:
            self._break()

    def _break(self) -> None:
        self._broken = True
        self._let_all_go(False)

    def _let_all_go(self, whole: bool) -> None:
        while self._line:
            waiter = self._line.popleft()
            waiter.item = whole
            waiter.wake()
