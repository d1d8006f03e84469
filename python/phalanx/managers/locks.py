"""Locks and their kin that a manager makes.

They answer to the same calls as those of `threading`, and lie in the arena.

A lock comes back when the process that holds it is killed, and the next to acquire it is told so by
an `AbandonedLockWarning`, unless the server acquires it for a client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from .clients import ClientGone
from .primitive import Primitive, attach

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]


class Permits(Primitive):
    """What can be acquired and released."""

    _methods = frozenset({"acquire", "locked", "release"})
    # The error for a release too many.
    _too_many: tuple[type[Exception], str]

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        if timeout is None or timeout == -1:
            if self._native.acquire(False):
                return True
            return bool(blocking) and bool(self._wait(self._native.acquire))
        if not blocking:
            raise ValueError("can't specify a timeout for a non-blocking call")
        if timeout < 0:
            raise ValueError("timeout value must be a non-negative number")
        return bool(self._wait(self._native.acquire, True, timeout))

    def release(self) -> None:
        try:
            self._native.release()
        except (AssertionError, ValueError):
            self._refuse(*self._too_many)

    def _refuse(self, error: type[Exception], text: str) -> NoReturn:
        # If it was lost in a wait that the end of the server has ended, that is the news.
        self._watch()
        raise error(text) from None

    def locked(self) -> bool:
        """Whether somebody would have to wait."""
        locked: bool = self._native.locked()
        return locked

    def _take_back(self, method: str) -> None:
        self.release()

    # What a native Condition asks of a lock that is not native. It believes who says that somebody
    # holds it, as that of `threading` does.

    @property
    def _semlock(self) -> Permits:
        return self

    def _is_mine(self) -> bool:
        return self.locked()

    def _count(self) -> int:
        return 1

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Lock(Permits):
    """A lock that any thread may release."""

    _kind = "Lock"
    _too_many = RuntimeError, "release unlocked lock"

    def __init__(self) -> None:
        super().__init__(False)

    def _inherit(self, member: int) -> None:
        self._native._inherit(member)

    def __repr__(self) -> str:
        state = "locked" if self.locked() else "unlocked"
        return f"<{state} manager {type(self).__name__} at {id(self):#x}>"


class RLock(Permits):
    """A lock that its owner may acquire again, and that only its owner may release."""

    _kind = "RLock"
    _too_many = RuntimeError, "cannot release un-acquired lock"

    def __init__(self) -> None:
        super().__init__(False)

    __repr__ = Lock.__repr__


class Semaphore(Permits):
    """A counter that is never below zero. Nobody owns what it counts."""

    _kind = "Semaphore"
    _too_many = ValueError, "Semaphore released too many times"

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        super().__init__(False, value)

    def release(self, n: int = 1) -> None:
        if n < 1:
            raise ValueError("n must be one or more")
        for _ in range(n):
            super().release()

    def get_value(self) -> int:
        value: int = self._native.get_value()
        return value

    def __repr__(self) -> str:
        return f"<manager {type(self).__name__} at {id(self):#x}: value={self.get_value()}>"


class BoundedSemaphore(Semaphore):
    """A semaphore that never rises above its first value; the dead's permits come back."""

    _kind = "BoundedSemaphore"

    def release(self, n: int = 1) -> None:
        if n > 1 and self.get_value() + n > self._native._maximum():
            self._refuse(*self._too_many)
        super().release(n)

    def _inherit(self, member: int) -> None:
        self._native._inherit(member)


class Condition(Primitive):
    """A lock, and a line of those who have let go of it to wait for news."""

    _kind = "Condition"
    _methods = frozenset({"acquire", "locked", "notify", "notify_all", "release", "wait"})
    _lock: Permits

    def __init__(self, lock: Any = None) -> None:
        lock = RLock() if lock is None else lock
        if not isinstance(lock, Permits):
            raise TypeError(
                "a manager's Condition needs a lock or semaphore of the same manager, not"
                f" {type(lock).__name__}"
            )
        super().__init__(self._adopt_lock(lock))

    def _share(self) -> tuple[Any, ...] | None:
        shared, lock = super()._share(), self._lock._share()
        return (*shared, lock) if shared and lock else None

    def _attach(self, family: int, handle: int, *rest: Any) -> None:
        super()._attach(family, handle, self._adopt_lock(attach(rest[0], self._watch)))

    def _adopt_lock(self, lock: Permits) -> Any:
        self._lock = lock
        self.acquire, self.release = lock.acquire, lock.release
        return lock._native if isinstance(lock, RLock) else lock

    def locked(self) -> bool:
        return self._lock.locked()

    def wait(self, timeout: float | None = None) -> bool:
        try:
            notified: bool = self._wait(self._native.wait, timeout)
        except AssertionError:
            self._lock._refuse(RuntimeError, "cannot wait on un-acquired lock")
        except ClientGone:
            is_mine = getattr(self._lock._native, "_is_mine", None)  # nobody owns a permit
            if is_mine is not None and is_mine():
                self._lock.release()
            raise
        return notified

    def notify(self, n: int = 1) -> None:
        self._notify(self._native.notify, n)

    def notify_all(self) -> None:
        self._notify(self._native.notify_all)

    def _notify(self, function: Callable[..., None], *args: int) -> None:
        try:
            function(*args)
        except AssertionError:
            self._lock._refuse(RuntimeError, "cannot notify on un-acquired lock")

    def _inherit(self, member: int) -> None:
        self._lock._inherit(member)

    def _take_back(self, method: str) -> None:
        if method == "wait":
            self.notify()  # it was for somebody who goes on
        self.release()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def __repr__(self) -> str:
        return f"<manager Condition({self._lock!r}, {self._native._waiters()})>"


class Event(Primitive):
    """A flag that can be waited for."""

    _kind = "Event"
    _methods = frozenset({"clear", "is_set", "set", "wait"})

    def is_set(self) -> bool:
        is_set: bool = self._native.is_set()
        return is_set

    def set(self) -> None:
        self._native.set()

    def clear(self) -> None:
        self._native.clear()

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set() or bool(self._wait(self._native.wait, timeout))

    def __repr__(self) -> str:
        return f"<manager Event at {id(self):#x}: {'set' if self.is_set() else 'unset'}>"


class Barrier(Primitive):
    """Lets its parties go on when all of them are there; breaks when one is gone."""

    _kind = "Barrier"
    _methods = frozenset({"abort", "reset", "wait"})

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
    ) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        super().__init__(parties, action, timeout)

    def _share(self) -> tuple[Any, ...] | None:
        shared = super()._share()
        if shared is None or self._native._action is not None:
            return None  # the server runs it, whoever comes last
        return *shared, None, self._native._timeout

    @property
    def parties(self) -> int:
        parties: int = self._native.parties
        return parties

    @property
    def n_waiting(self) -> int:
        waiting: int = self._native.n_waiting
        return waiting

    @property
    def broken(self) -> bool:
        broken: bool = self._native.broken
        return broken

    def wait(self, timeout: float | None = None) -> int:
        try:
            index: int = self._wait(self._native.wait, timeout)
        except ClientGone:
            self._native.abort()  # the round will never be whole
            raise
        return index

    def reset(self) -> None:
        self._native.reset()

    def abort(self) -> None:
        self._native.abort()
