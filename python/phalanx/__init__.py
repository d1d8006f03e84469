"""Python's multiprocessing, rebuilt in Rust: ``import phalanx as mp``.

Every name of :mod:`multiprocessing` is here, with the same meaning, and ``phalanx.X`` is the
counterpart of ``multiprocessing.X`` for every submodule X. New names:

* :func:`install` makes ``import multiprocessing`` mean this package, here and in all children;
* :class:`AbandonedLockWarning`: a lock was taken over from a process that had died with it.

Importing this creates no thread, no lock and no shared memory; submodules are loaded when a name
of theirs is first used.
"""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise ImportError(
        f"phalanx runs on Linux only, and this is {sys.platform!r}; use multiprocessing here"
    )

from . import context
from ._install import install as install

__all__ = [name for name in dir(context._default_context) if not name.startswith("_")]

globals().update(
    (name, getattr(context._default_context, name)) for name in __all__ if name != "reducer"
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    # What the two statements above do, for those who read and do not run it.
    from .context import AuthenticationError as AuthenticationError
    from .context import BufferTooShort as BufferTooShort
    from .context import ProcessError as ProcessError
    from .context import TimeoutError as TimeoutError
    from .pool import WorkerDied as WorkerDied
    from .synchronize import AbandonedLockWarning as AbandonedLockWarning

    Array = context._default_context.Array
    Barrier = context._default_context.Barrier
    BoundedSemaphore = context._default_context.BoundedSemaphore
    Condition = context._default_context.Condition
    Event = context._default_context.Event
    JoinableQueue = context._default_context.JoinableQueue
    Lock = context._default_context.Lock
    Manager = context._default_context.Manager
    Pipe = context._default_context.Pipe
    Pool = context._default_context.Pool
    Process = context._default_context.Process
    Queue = context._default_context.Queue
    RLock = context._default_context.RLock
    RawArray = context._default_context.RawArray
    RawValue = context._default_context.RawValue
    Semaphore = context._default_context.Semaphore
    SimpleQueue = context._default_context.SimpleQueue
    Value = context._default_context.Value
    active_children = context._default_context.active_children
    allow_connection_pickling = context._default_context.allow_connection_pickling
    cpu_count = context._default_context.cpu_count
    current_process = context._default_context.current_process
    freeze_support = context._default_context.freeze_support
    get_all_start_methods = context._default_context.get_all_start_methods
    get_context = context._default_context.get_context
    get_logger = context._default_context.get_logger
    get_start_method = context._default_context.get_start_method
    log_to_stderr = context._default_context.log_to_stderr
    parent_process = context._default_context.parent_process
    reducer = context._default_context.reducer
    set_executable = context._default_context.set_executable
    set_forkserver_preload = context._default_context.set_forkserver_preload
    set_start_method = context._default_context.set_start_method
del TYPE_CHECKING

SUBDEBUG = 5
SUBWARNING = 25

# Names that are looked up in a submodule when they are first asked for.
_ELSEWHERE = {
    "reducer": "context",
    "AbandonedLockWarning": "synchronize",
    "WorkerDied": "pool",
}

_SUBMODULES = frozenset(
    "connection dummy forkserver heap managers pool popen_fork popen_forkserver popen_spawn_posix "
    "process queues reduction resource_sharer resource_tracker shared_memory sharedctypes spawn "
    "synchronize util".split()
)


def _submodule(name: str) -> object:
    # Not by `importlib`, which would have to be imported for it.
    __import__(f"{__name__}.{name}")
    return sys.modules[f"{__name__}.{name}"]


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return _submodule(name)
    if name == "reducer":
        return context._default_context.reducer
    if name in _ELSEWHERE:
        value = getattr(_submodule(_ELSEWHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Functions of the main module are pickled by this name where it is run again in a child.
if "__main__" in sys.modules:
    sys.modules["__mp_main__"] = sys.modules["__main__"]
