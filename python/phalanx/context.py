"""Contexts: the package's functions, bound to a start method.

| method | how a child comes to be |
| --- | --- |
| fork | a copy of this process |
| spawn | a new interpreter |
| forkserver | a copy of a small server process, started clean, that keeps two children ready |
"""

from __future__ import annotations

import os
import sys
from _thread import _local

from . import _phalanx, process

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

    from . import _makers, connection, managers, pool, popen_fork, queues, synchronize

__all__: tuple[str, ...] = ()


class ProcessError(Exception):
    """The base of the exceptions of this package."""


class BufferTooShort(ProcessError):
    """A message was longer than the buffer; ``args[0]`` is the whole message."""


class TimeoutError(ProcessError):  # noqa: A001 (the name is the standard library's)
    """The time given for waiting is over."""


class AuthenticationError(ProcessError):
    """The other side of a connection does not know the key."""


class BaseContext:
    """What all contexts have in common: the makers of processes and of shared objects."""

    ProcessError = ProcessError
    BufferTooShort = BufferTooShort
    TimeoutError = TimeoutError
    AuthenticationError = AuthenticationError

    Process: type[process.BaseProcess]
    _name: str

    current_process = staticmethod(process.current_process)
    parent_process = staticmethod(process.parent_process)
    active_children = staticmethod(process.active_children)

    def cpu_count(self) -> int:
        """The number of CPUs of the system."""
        count = os.cpu_count()
        if count is None:
            raise NotImplementedError("the system does not tell how many CPUs it has")
        return count

    # Each maker loads its module when it is first called.

    def Manager(self) -> managers.SyncManager:
        """A server process that holds objects, started; they are used through proxies."""
        from .managers import SyncManager

        manager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Pipe(self, duplex: bool = True) -> tuple[connection.Connection, connection.Connection]:
        """Two connected ends; one way only (receiver, sender) if not ``duplex``."""
        from .connection import Pipe

        return Pipe(duplex)

    def Lock(self) -> synchronize.Lock:
        """A lock for processes and threads."""
        from .synchronize import Lock

        return Lock(ctx=self.get_context())

    def RLock(self) -> synchronize.RLock:
        """A lock that its owner may take again."""
        from .synchronize import RLock

        return RLock(ctx=self.get_context())

    def Condition(
        self, lock: synchronize.Lock | synchronize.RLock | None = None
    ) -> synchronize.Condition:
        """A condition variable, over an RLock of its own if no lock is given."""
        from .synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1) -> synchronize.Semaphore:
        """A counter that waits at zero."""
        from .synchronize import Semaphore

        return Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value: int = 1) -> synchronize.BoundedSemaphore:
        """A semaphore that refuses more releases than acquisitions."""
        from .synchronize import BoundedSemaphore

        return BoundedSemaphore(value, ctx=self.get_context())

    def Event(self) -> synchronize.Event:
        """A flag to wait for."""
        from .synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
    ) -> synchronize.Barrier:
        """A point where ``parties`` processes wait for each other."""
        from .synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize: int = 0) -> queues.Queue[Any]:
        """A queue for many producers and consumers; unbounded if ``maxsize`` is not positive."""
        from .queues import Queue

        return Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize: int = 0) -> queues.JoinableQueue[Any]:
        """A queue with ``task_done()`` and ``join()``."""
        from .queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self) -> queues.SimpleQueue[Any]:
        """A queue with nothing but put, get, empty and close."""
        from .queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context())

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> pool.Pool:
        """A pool of worker processes."""
        from .pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context())

    if TYPE_CHECKING:
        RawValue: _makers.RawValueMaker
        RawArray: _makers.RawArrayMaker
        Value: _makers.ValueMaker
        Array: _makers.ArrayMaker
    else:

        def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
            """A ctypes object in shared memory, without a lock."""
            from .sharedctypes import RawValue

            return RawValue(typecode_or_type, *args)

        def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:
            """A ctypes array in shared memory, without a lock."""
            from .sharedctypes import RawArray

            return RawArray(typecode_or_type, size_or_initializer)

        def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
            """A ctypes object in shared memory, with a lock unless ``lock`` is False."""
            from .sharedctypes import Value

            return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

        def Array(
            self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True
        ) -> Any:
            """A ctypes array in shared memory, with a lock unless ``lock`` is False."""
            from .sharedctypes import Array

            return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def freeze_support(self) -> None:
        """For programs that are frozen into an executable; does nothing on Linux."""

    def get_logger(self) -> logging.Logger:
        """The package's logger, named "multiprocessing"."""
        from .util import get_logger

        return get_logger()

    def log_to_stderr(self, level: int | None = None) -> logging.Logger:
        """Let the package's logger write to stderr."""
        from .util import log_to_stderr

        return log_to_stderr(level)

    def allow_connection_pickling(self) -> None:
        """Make sure that connections and sockets can be pickled."""
        __import__(f"{__package__}.connection")

    def set_executable(self, executable: str | bytes | os.PathLike[Any]) -> None:
        """The interpreter for children of spawn and for the fork server."""
        from .spawn import set_executable

        set_executable(executable)

    def set_forkserver_preload(self, module_names: list[str], *, on_error: str = "ignore") -> None:
        """Modules that the fork server imports once, for all its children.

        ``on_error`` is what it does about one that cannot be imported: "ignore" it, "warn" by an
        ImportWarning, or "fail", so that no child can be started.
        """
        from .forkserver import set_forkserver_preload

        set_forkserver_preload(module_names, on_error=on_error)

    def get_context(self, method: str | None = None) -> BaseContext:
        """The context of a start method; this one if None."""
        if method is None:
            return self
        try:
            return _concrete_contexts[method]
        except KeyError:
            raise ValueError(
                f"cannot find context for {method!r}: there are fork, spawn and forkserver"
            ) from None

    def get_start_method(self, allow_none: bool = False) -> str | None:
        """The name of the start method."""
        return self._name

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """ValueError: only the default context's start method can be set."""
        raise ValueError("cannot set start method of concrete context")

    @property
    def reducer(self) -> Any:
        """The module (or object) that pickles what goes to other processes."""
        return globals().get("reduction") or __getattr__("reduction")

    @reducer.setter
    def reducer(self, reduction: Any) -> None:
        globals()["reduction"] = reduction

    def _check_available(self) -> None:
        pass


class Process(process.BaseProcess):
    """A process of the default context's start method."""

    _start_method = None

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_fork.Popen:  # type: ignore[override]
        ctx: Any = _default_context.get_context().Process
        return ctx._Popen(process_obj)  # type: ignore[no-any-return]

    @staticmethod
    def _after_fork() -> None:
        _default_context.get_context().Process._after_fork()


class DefaultContext(BaseContext):
    """The context behind the package's own functions; its start method can be set once."""

    Process = Process

    def __init__(self, context: BaseContext) -> None:
        self._default_context = context
        self._actual_context: BaseContext | None = None

    def get_context(self, method: str | None = None) -> BaseContext:
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Choose how processes are started; RuntimeError the second time without ``force``."""
        if self._actual_context is not None and not force:
            raise RuntimeError("context has already been set")
        if method is None and force:
            self._actual_context = None
        else:
            self._actual_context = self.get_context(method)

    def get_start_method(self, allow_none: bool = False) -> str | None:
        if self._actual_context is None:
            if allow_none:
                return None
            self._actual_context = self._default_context
        return self._actual_context._name

    def get_all_start_methods(self) -> list[str]:
        """The start methods there are, the default first."""
        first = self._default_context._name
        return [first, *(name for name in _concrete_contexts if name != first)]


class ForkProcess(process.BaseProcess):
    """A process that begins as a copy of its parent."""

    _start_method = "fork"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_fork.Popen:  # type: ignore[override]
        from .popen_fork import Popen

        return Popen(process_obj)


class SpawnProcess(process.BaseProcess):
    """A process that begins as a new interpreter."""

    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_fork.Popen:  # type: ignore[override]
        from .popen_spawn_posix import Popen

        return Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        """There was no fork."""


class ForkServerProcess(process.BaseProcess):
    """A process that begins as a copy of the fork server."""

    _start_method = "forkserver"

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_fork.Popen:  # type: ignore[override]
        from .popen_forkserver import Popen

        return Popen(process_obj)


class ForkContext(BaseContext):
    """The context of the start method fork."""

    _name = "fork"
    Process = ForkProcess


class SpawnContext(BaseContext):
    """The context of the start method spawn."""

    _name = "spawn"
    Process = SpawnProcess


class ForkServerContext(BaseContext):
    """The context of the start method forkserver."""

    _name = "forkserver"
    Process = ForkServerProcess


_concrete_contexts: dict[str, BaseContext] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}

# What the running Python's own module uses.
_DEFAULT = "forkserver" if sys.version_info >= (3, 14) else "fork"

_default_context = DefaultContext(_concrete_contexts[_DEFAULT])


def _force_start_method(method: str) -> None:
    _default_context._actual_context = _concrete_contexts[method]


# Which thread is pickling for which child that is being started.
_tls = _local()


def get_spawning_popen() -> Any:
    """The Popen for which this thread is pickling, or None."""
    return getattr(_tls, "spawning_popen", None)


def set_spawning_popen(popen: Any) -> None:
    """Say that this thread pickles for the start of a child; None: no longer.

    The standard module is told, too, if the program uses both: a library that got a context of
    phalanx may hand objects of its own, built on the standard ones, to the children.
    """
    _tls.spawning_popen = popen
    if standard := _standard("context"):
        standard.set_spawning_popen(popen)
    # This package's own say for which member they pickle, too, and that counts.
    if hasattr(popen, "duplicate_for_child"):
        _phalanx.begin_foreign_spawning(popen)
    else:
        _phalanx.end_spawning()


def _standard(module: str) -> ModuleType | None:
    """A module of the standard package, if it is loaded beside ours and not replaced by it."""
    found = sys.modules.get(f"multiprocessing.{module}")
    replaced = found is sys.modules.get(f"{__package__}.{module}")
    return None if replaced else found


def assert_spawning(obj: object) -> None:
    """RuntimeError unless ``obj`` is being pickled for the start of a child."""
    if get_spawning_popen() is None:
        raise RuntimeError(
            f"{type(obj).__name__} objects should only be shared between processes through "
            "inheritance: give it to the Process as an argument"
        )


def __getattr__(name: str) -> ModuleType:
    # Pickling is not needed to make contexts, and costs more to import than all else here.
    if name == "reduction":
        __import__(f"{__package__}.reduction")
        return sys.modules[f"{__package__}.reduction"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
