"""Logging, finalizers, fork hooks and small helpers for the rest of the package."""

from __future__ import annotations

import atexit
import io
import itertools
import os
import sys
from _thread import _local, allocate_lock
from _weakref import ref

from . import process
from ._phalanx import hold_interrupt as hold_interrupt
from ._phalanx import release_interrupt as release_interrupt
from ._phalanx import spawn_process

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

__all__ = [
    "sub_debug",
    "debug",
    "info",
    "sub_warning",
    "get_logger",
    "log_to_stderr",
    "get_temp_dir",
    "register_after_fork",
    "is_exiting",
    "Finalize",
    "ForkAwareThreadLock",
    "ForkAwareLocal",
    "close_all_fds_except",
    "SUBDEBUG",
    "SUBWARNING",
]

# -- logging ---------------------------------------------------------------------------------------

NOTSET = 0
SUBDEBUG = 5
DEBUG = 10
INFO = 20
SUBWARNING = 25

LOGGER_NAME = "multiprocessing"
DEFAULT_LOGGING_FORMAT = "[%(levelname)s/%(processName)s] %(message)s"

_logger: logging.Logger | None = None
_log_to_stderr = False


def sub_debug(msg: str, *args: object) -> None:
    """Log below DEBUG, if the package's logger is in use."""
    if _logger:
        _logger.log(SUBDEBUG, msg, *args, stacklevel=2)


def debug(msg: str, *args: object) -> None:
    """Log with DEBUG, if the package's logger is in use."""
    if _logger:
        _logger.log(DEBUG, msg, *args, stacklevel=2)


def info(msg: str, *args: object) -> None:
    """Log with INFO, if the package's logger is in use."""
    if _logger:
        _logger.log(INFO, msg, *args, stacklevel=2)


def sub_warning(msg: str, *args: object) -> None:
    """Log between INFO and WARNING, if the package's logger is in use."""
    if _logger:
        _logger.log(SUBWARNING, msg, *args, stacklevel=2)


def get_logger() -> logging.Logger:
    """The package's logger, made at the first call; it does not pass records on."""
    global _logger
    import logging

    with logging._lock:  # type: ignore[attr-defined]
        if _logger is None:
            _logger = logging.getLogger(LOGGER_NAME)
            _logger.propagate = False
            _name_log_records()
            # Our clean-up logs, so it has to run before that of logging.
            atexit.unregister(_exit_function)
            atexit.register(_exit_function)
    return _logger


def _name_log_records() -> None:
    """Let all log records name this process, if logging is in use.

    By itself logging asks a loaded ``multiprocessing``, which need not be this package.
    """
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return
    make = logging.getLogRecordFactory()
    if getattr(make, "__module__", None) == __name__:
        return

    def make_named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.processName == "MainProcess":
            record.processName = process.current_process().name
        return record

    logging.setLogRecordFactory(make_named)


def log_to_stderr(level: int | None = None) -> logging.Logger:
    """Let the package's logger write to stderr, from ``level`` on if given."""
    global _log_to_stderr
    import logging

    logger = get_logger()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(DEFAULT_LOGGING_FORMAT))
    logger.addHandler(handler)
    if level:
        logger.setLevel(level)
    _log_to_stderr = True
    return logger


# -- sockets and files -----------------------------------------------------------------------------

abstract_sockets_supported = True


def is_abstract_socket_namespace(address: str | bytes | None) -> bool:
    """Whether the address of a Unix socket is a name without a file."""
    if not address:
        return False
    if isinstance(address, bytes):
        return address[0] == 0
    if isinstance(address, str):
        return address[0] == "\0"
    raise TypeError(f"address type of {address!r} unrecognized")


def get_temp_dir() -> str:
    """This process's temporary folder, made at the first call and removed at the exit."""
    config = process.current_process()._config
    tempdir: str | None = config.get("tempdir")
    if tempdir is None:
        import shutil
        import tempfile

        from . import resource_tracker

        tempdir = tempfile.mkdtemp(prefix="pymp-")
        info("created temp directory %s", tempdir)
        # If this program is killed, the tracker removes it.
        tracked = os.fsencode(tempdir).hex(), "tempdir"
        resource_tracker.register(*tracked)

        # The functions themselves are kept: at the exit their modules may be gone.
        def remove(path: str) -> None:
            shutil.rmtree(path, ignore_errors=True)  # others may have removed some of it
            resource_tracker.unregister(*tracked)

        Finalize(None, _remove_temp_dir, args=(remove, tempdir), exitpriority=-100)
        config["tempdir"] = tempdir
    return tempdir


def _remove_temp_dir(rmtree: Callable[[str], object], tempdir: str) -> None:
    rmtree(tempdir)
    current = process.current_process()
    if current is not None:  # late in the interpreter's end
        current._config["tempdir"] = None


# -- what objects want done in a child -------------------------------------------------------------

# A weak dictionary as soon as there is something in it: see `process._dangling`.
_afterfork_registry: Any = {}
_afterfork_registries: dict[str, Any] = {}
_afterfork_counter = itertools.count()


def register_after_fork(obj: Any, func: Callable[[Any], object]) -> None:
    """Call ``func(obj)`` in each child that is forked, as long as ``obj`` lives."""
    global _afterfork_registry
    if type(_afterfork_registry) is dict:
        from weakref import WeakValueDictionary

        # Threads that come here at once must find the same one; setdefault() is one step.
        _afterfork_registry = _afterfork_registries.setdefault("", WeakValueDictionary())
    _afterfork_registry[next(_afterfork_counter), id(obj), func] = obj


def _run_after_forkers() -> None:
    if not _afterfork_registry:
        return
    for (_, _, func), obj in sorted(_afterfork_registry.items(), key=lambda item: item[0][0]):
        try:
            func(obj)
        except Exception as error:
            info("after forker raised exception %s", error)


# -- finalizers ------------------------------------------------------------------------------------

_finalizer_registry: dict[Any, Finalize] = {}
_finalizer_counter = itertools.count()


class Finalize:
    """A call that is made once: when an object goes, at the exit, or when asked for.

    Args:
        obj: the call is made when this is collected; None: only at the exit.
        callback: called with ``args`` and ``kwargs``.
        exitpriority: calls with one are made at the exit of the process too: the highest
            priority first, then the latest. Those without are forgotten then.
    """

    def __init__(
        self,
        obj: Any,
        callback: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        exitpriority: int | None = None,
    ) -> None:
        if exitpriority is not None and not isinstance(exitpriority, int):
            raise TypeError(
                f"exitpriority has to be None or an int, not {type(exitpriority).__name__}"
            )
        self._weakref: Any = None
        if obj is not None:
            self._weakref = ref(obj, self)
        elif exitpriority is None:
            raise ValueError("without an object, exitpriority cannot be None")
        self._callback: Any = callback
        self._args: Any = args
        self._kwargs: Any = kwargs or {}
        self._key: Any = (exitpriority, next(_finalizer_counter))
        self._pid = os.getpid()
        _finalizer_registry[self._key] = self

    def __call__(
        self,
        wr: Any = None,
        # Bound here since the module's names may be gone at the interpreter's end.
        _finalizer_registry: dict[Any, Finalize] = _finalizer_registry,
        sub_debug: Callable[..., None] = sub_debug,
        getpid: Callable[[], int] = os.getpid,
    ) -> Any:
        """Make the call, unless it has been made or cancelled or belongs to another process."""
        try:
            del _finalizer_registry[self._key]
        except KeyError:
            sub_debug("finalizer no longer registered")
            return None
        if self._pid != getpid():
            sub_debug("finalizer ignored because different process")
            result = None
        else:
            sub_debug(
                "finalizer calling %s with args %s and kwargs %s",
                self._callback,
                self._args,
                self._kwargs,
            )
            result = self._callback(*self._args, **self._kwargs)
        self._forget()
        return result

    def cancel(self) -> None:
        """Never make the call."""
        try:
            del _finalizer_registry[self._key]
        except KeyError:
            pass
        else:
            self._forget()

    def _forget(self) -> None:
        self._weakref = self._callback = self._args = self._kwargs = self._key = None

    def still_active(self) -> bool:
        """Whether the call is still to be made."""
        return self._key in _finalizer_registry

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._callback is None or (self._weakref is not None and self._weakref() is None):
            return f"<{name} object, dead>"
        text = f"<{name} object, callback={getattr(self._callback, '__name__', self._callback)}"
        if self._args:
            text += f", args={self._args}"
        if self._kwargs:
            text += f", kwargs={self._kwargs}"
        if self._key[0] is not None:
            text += f", exitpriority={self._key[0]}"
        return text + ">"


def _run_finalizers(minpriority: int | None = None) -> None:
    """Make the calls that have an exit priority, of at least ``minpriority`` if given."""
    if _finalizer_registry is None:  # the module's names are gone
        return
    # The registry may change meanwhile, by the collector or another thread; list() of a dict is
    # one step, while iterating over its items is not.
    due = [
        key
        for key in list(_finalizer_registry)
        if key[0] is not None and (minpriority is None or key[0] >= minpriority)
    ]
    for key in sorted(due, reverse=True):
        finalizer = _finalizer_registry.get(key)
        if finalizer is None:
            continue
        sub_debug("calling %s", finalizer)
        try:
            finalizer()
        except Exception:
            import traceback

            traceback.print_exc()
    if minpriority is None:
        _finalizer_registry.clear()


# -- the exit --------------------------------------------------------------------------------------

_exiting: bool | None = False


def is_exiting() -> bool:
    """Whether this process is ending."""
    return _exiting is None or _exiting


def _exit_function(
    # Bound here since the module's names may be gone when this runs.
    info: Callable[..., None] = info,
    debug: Callable[..., None] = debug,
    _run_finalizers: Callable[..., None] = _run_finalizers,
    active_children: Callable[[], list[process.BaseProcess]] = process.active_children,
    current_process: Callable[[], process.BaseProcess | None] = process.current_process,
) -> None:
    global _exiting
    if _exiting:
        return
    _exiting = True
    info("process shutting down")
    if not _finalizer_registry and not process._children:
        return
    debug('running all "atexit" finalizers with priority >= 0')
    _run_finalizers(0)
    if current_process() is not None:
        for child in active_children():
            if child.daemon and child._popen is not None:
                info("calling terminate() for daemon %s", child.name)
                child._popen.terminate()
        for child in active_children():
            info("calling join() for process %s", child.name)
            child.join()
    debug('running the remaining "atexit" finalizers')
    _run_finalizers()


atexit.register(_exit_function)


# -- locks and locals that are new in a child ------------------------------------------------------


class ForkAwareThreadLock:
    """A lock for threads that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release
        register_after_fork(self, ForkAwareThreadLock._at_fork_reinit)

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *args: Any) -> None:
        self._lock.__exit__(*args)


class ForkAwareLocal(_local):
    """Values by thread, empty in a forked child."""

    def __init__(self) -> None:
        register_after_fork(self, lambda obj: obj.__dict__.clear())

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


# -- descriptors and standard streams --------------------------------------------------------------

try:
    MAXFD = os.sysconf("SC_OPEN_MAX")
except Exception:
    MAXFD = 256


def close_all_fds_except(fds: Iterable[int]) -> None:
    """Close every descriptor but these."""
    kept = [-1, *sorted(fds), MAXFD]
    if kept[-2] >= MAXFD:
        raise AssertionError("fd too large")
    for low, high in zip(kept, kept[1:]):
        os.closerange(low + 1, high)


def close_fds(*fds: int) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)


class _NoInput(io.TextIOBase):
    """A text file without a line, which is opened only if somebody asks for more than text.

    Each child gets one for its stdin. To open the null device there cost a forked child 55 page
    faults, a seventh of all it had.
    """

    _file: Any = None

    def _open(self) -> Any:
        if self._file is None:
            self._file = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (it stays open)
        return self._file

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whether it is closed is asked by looking for such a one
            raise AttributeError(name)
        return getattr(self._open(), name)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> str:
        self._check()
        return ""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        self._check()
        return ""

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def fileno(self) -> int:
        self._check()
        return self._open().fileno()  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    encoding = "utf-8"
    errors = "strict"
    newlines = None
    name = os.devnull
    mode = "r"


def _close_stdin() -> None:
    """Let stdin be empty: a child must not read what is meant for its parent."""
    stdin = sys.stdin
    # Not by isinstance(), which asks the abstract base class.
    if stdin is None or (type(stdin) is _NoInput and not stdin.closed):
        return
    try:
        stdin.close()
    except (OSError, ValueError):
        pass
    sys.stdin = _NoInput()


def _flush_std_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):  # there is none, or it is closed
            pass


# -- starting an interpreter -----------------------------------------------------------------------


def spawnv_passfds(path: Any, args: list[Any], passfds: Iterable[int]) -> int:
    """Start the program ``path`` with these arguments; of the descriptors, it inherits the
    standard streams and ``passfds``. Gives the process id."""
    return spawn_process(
        os.fsencode(path), [os.fsencode(arg) for arg in args], sorted(map(int, passfds))
    )


def _args_from_interpreter_flags() -> list[str]:
    """The options that give another interpreter the flags of this one."""
    from subprocess import _args_from_interpreter_flags as args  # type: ignore[attr-defined]

    return args()  # type: ignore[no-any-return]


def _cleanup_tests() -> None:
    """End the helper processes and remove what is left, between CPython's tests."""
    from test import support  # type: ignore[import-not-found]

    process._cleanup()
    from . import forkserver, resource_tracker

    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()
    _run_finalizers()
    support.gc_collect()
    support.reap_children()
