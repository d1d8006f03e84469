"""Locks, semaphores, conditions, events and barriers between processes.

Thin classes over native ones, which do all the work; what they add is the standard library's
constructors, its ``repr`` and pickling. Each lies in the family's arena, costs no file descriptor,
and survives the death of any process: a lock whose owner has died goes to the next who acquires
it, with an `AbandonedLockWarning`.

They can be given to children as arguments, and sent to any process of the family through queues
and pipes, as long as somebody holds a reference until the receiver has one.
"""

from __future__ import annotations

import os
import sys
import time

from . import _phalanx
from ._phalanx import SEM_VALUE_MAX, AbandonedLockWarning

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._barrier import Barrier as Barrier
    from .context import BaseContext

__all__ = [
    "SEM_VALUE_MAX",
    "AbandonedLockWarning",
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Lock",
    "RLock",
    "SemLock",
    "Semaphore",
]

RECURSIVE_MUTEX, SEMAPHORE = 0, 1


def _is_fork_context(ctx: BaseContext | None) -> bool:
    if ctx is None:
        from . import context

        ctx = context._default_context.get_context()
    if ctx.get_start_method() == "fork":
        return True
    # A tracker that was killed is noticed, replaced and warned of when the next lock is made, as
    # in the standard library; these locks themselves need none.
    # (Another thread may be in the middle of importing it.)
    tracker = sys.modules.get(f"{__package__}.resource_tracker")
    if revive := getattr(tracker, "revive", None):
        revive()
    return False


def refuse_to_be_spawned() -> None:
    """Raise RuntimeError while a child is being started by spawn or forkserver: for what a fork
    context has made. It would work, but not with the standard library."""
    from . import context

    if context.get_spawning_popen() is not None:
        raise RuntimeError(
            "A SemLock created in a fork context, such as a lock or the locks of a queue, cannot "
            "be given to a process that is started by spawn or forkserver. Make it with the "
            "context that starts the process."
        )


class _RandomNames:
    """Random parts of names, for ever."""

    def __iter__(self) -> _RandomNames:
        return self

    def __next__(self) -> str:
        return os.urandom(4).hex()


class SemLock:
    """The common base of locks and semaphores."""

    _rand = _RandomNames()
    _kind = SEMAPHORE

    @property
    def _semlock(self) -> _View:
        """The object as its native half is known elsewhere: with a kind, a handle and a value."""
        return _View(self)

    def __reduce__(self) -> Any:
        if self._is_fork_ctx:  # type: ignore[attr-defined]
            refuse_to_be_spawned()
        return _rebuild, (type(self), self._handle_for_pickle())  # type: ignore[attr-defined]

    @staticmethod
    def _make_name() -> str:
        """A name for a named semaphore. The semaphores here have none and do not call it."""
        from . import process

        prefix = process.current_process()._config["semprefix"]
        return f"{prefix}-{next(SemLock._rand)}"


class _View:
    """What ``_semlock`` gives."""

    __slots__ = ("_lock",)

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def __enter__(self) -> bool:
        entered: bool = self._lock.__enter__()
        return entered

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__(*args)

    name = None

    @property
    def handle(self) -> int:
        handle: int = self._lock._handle()
        return handle

    @property
    def kind(self) -> int:
        kind: int = self._lock._kind
        return kind

    @property
    def maxvalue(self) -> int:
        maximum = getattr(self._lock, "_maximum", None)
        if maximum is not None:
            return int(maximum())
        return SEM_VALUE_MAX if isinstance(self._lock, Semaphore) else 1


def _rebuild(cls: type[Any], state: tuple[Any, ...]) -> Any:
    """Unpickle a shared object: make one of its class and attach it."""
    made: Any = cls.__new__(cls)  # type: ignore[call-overload]
    made._attach(*state)
    return made


def _owner(lock: Any) -> str:
    """Who holds a lock, in the words of its ``repr``."""
    if lock._is_mine():
        from . import process

        name = process.current_process().name
        threading: Any = sys.modules.get("threading")
        thread = threading.current_thread().name if threading else "MainThread"
        return name if thread == "MainThread" else f"{name}|{thread}"
    if not lock.locked():
        return "None"
    return "SomeOtherThread" if lock._count() > 0 else "SomeOtherProcess"


class Lock(_phalanx.Lock, SemLock):
    """A lock that is not recursive, and that any process or thread may release."""

    def __init__(self, *, ctx: BaseContext | None) -> None:
        self._create(_is_fork_context(ctx))

    def __repr__(self) -> str:
        try:
            owner = _owner(self)
        except Exception:
            owner = "unknown"
        return f"<{type(self).__name__}(owner={owner})>"


class RLock(_phalanx.RLock, SemLock):
    """A lock that belongs to a thread of a process, which may acquire it again."""

    _kind = RECURSIVE_MUTEX

    def __init__(self, *, ctx: BaseContext | None) -> None:
        self._create(_is_fork_context(ctx))

    def __repr__(self) -> str:
        count: int | str
        try:
            owner = _owner(self)
            if self._is_mine():
                count = self._count()
            else:
                count = 0 if owner == "None" else "nonzero"
        except Exception:
            owner, count = "unknown", "unknown"
        return f"<{type(self).__name__}({owner}, {count})>"


class Semaphore(_phalanx.Semaphore, SemLock):
    """A counter that nobody owns: what a process took stays away if it dies."""

    def __init__(self, value: int = 1, *, ctx: BaseContext | None) -> None:
        self._create(_is_fork_context(ctx), value)

    # What a Condition asks of its lock. Nobody owns a permit: who says so is believed.

    def _is_mine(self) -> bool:
        return True

    def _count(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={_value(self)})>"


class BoundedSemaphore(_phalanx.BoundedSemaphore, Semaphore):
    """A counter that cannot rise above its first value; what a dead process took comes back."""

    def __init__(self, value: int = 1, *, ctx: BaseContext | None) -> None:
        self._create(_is_fork_context(ctx), value)

    def __repr__(self) -> str:
        try:
            maximum: int | str = self._maximum()
        except Exception:
            maximum = "unknown"
        return f"<{type(self).__name__}(value={_value(self)}, maxvalue={maximum})>"


def _value(semaphore: Any) -> int | str:
    try:
        return int(semaphore.get_value())
    except Exception:
        return "unknown"


class _Count:
    """A number of a Condition, with the face of the semaphore that others keep it in."""

    __slots__ = ("_get",)

    def __init__(self, get: Callable[[], int]) -> None:
        self._get = get

    def get_value(self) -> int:
        return self._get()

    @property
    def _semlock(self) -> _Count:
        return self

    def _get_value(self) -> int:
        return self._get()


def _nothing() -> int:
    return 0


class Condition(_phalanx.Condition):
    """Waiting for a notification, under a lock: an RLock by default, or a Lock or a semaphore."""

    def __init__(self, lock: Any = None, *, ctx: BaseContext | None) -> None:
        if lock is None:
            lock = RLock(ctx=ctx)
        self._create(lock)
        self._adopt_lock(lock)

    def _adopt_lock(self, lock: Any) -> None:
        self._lock = lock
        # Bound methods of the lock itself: a call of them is one native call.
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release

    def _attach(self, family: int, handle: int, lock: Any) -> None:
        super()._attach(family, handle, lock)
        self._adopt_lock(lock)

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), (*self._handle_for_pickle(), self._lock))

    def locked(self) -> bool:
        """Whether somebody holds the lock."""
        locked: bool = self._lock.locked()
        return locked

    @property
    def _sleeping_count(self) -> _Count:
        return _Count(self._waiters)

    @property
    def _woken_count(self) -> _Count:
        return _Count(_nothing)

    @property
    def _wait_semaphore(self) -> _Count:
        return _Count(_nothing)

    def __repr__(self) -> str:
        try:
            waiters: int | str = self._waiters()
        except Exception:
            waiters = "unknown"
        return f"<{type(self).__name__}({self._lock}, {waiters})>"

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until `predicate()` is true, and return what it gave last."""
        end = None if timeout is None else time.monotonic() + timeout
        result = predicate()
        while not result:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result


class Event(_phalanx.Event):
    """A flag that processes wait for."""

    def __init__(self, *, ctx: BaseContext | None) -> None:
        self._create()

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self._handle_for_pickle())

    def __repr__(self) -> str:
        state = "set" if self.is_set() else "unset"
        return f"<{type(self).__qualname__} at {id(self):#x} {state}>"


def __getattr__(name: str) -> Any:
    if name == "Barrier":
        from ._barrier import Barrier

        globals()[name] = Barrier
        return Barrier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
