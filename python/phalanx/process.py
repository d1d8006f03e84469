"""`Process`, and the processes around this one: itself, its parent, its children."""

from __future__ import annotations

import os
import sys
from itertools import count

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any
    from weakref import WeakSet

    from .popen_fork import Popen

__all__ = ["BaseProcess", "current_process", "active_children", "parent_process"]

ORIGINAL_DIR: str | None
try:
    ORIGINAL_DIR = os.path.abspath(os.getcwd())
except OSError:  # the directory has been removed
    ORIGINAL_DIR = None

# From 3.13 on children run the atexit functions, which include util._exit_function; before,
# they ran only that one.
_CHILDREN_RUN_ATEXIT = sys.version_info >= (3, 13)

_CONTEXT, _UTIL = f"{__package__}.context", f"{__package__}.util"

_SIGINT, _SIGKILL, _SIGTERM = 2, 9, 15


def current_process() -> BaseProcess:
    """The `Process` object of this process."""
    return _current_process


def parent_process() -> BaseProcess | None:
    """The process that started this one, or None in the first process.

    It has ``pid``, ``name``, ``is_alive()`` and ``join()``.
    """
    global _parent_process
    if isinstance(_parent_process, tuple):
        _parent_process = _ParentProcess(*_parent_process)
    return _parent_process


def active_children() -> list[BaseProcess]:
    """The children of this process that have not ended; those that have are joined."""
    _cleanup()
    return list(_children)


def _cleanup() -> None:
    """Reap the children that have ended."""
    global _crowd
    for child in list(_children):
        popen = child._popen
        if popen is not None and popen.poll() is not None:
            _forget(child)
    _crowd = 2 * len(_children) + 8


def _forget(child: BaseProcess) -> None:
    """Note that the child has ended."""
    _children.discard(child)
    # Another library's Popen knows nothing of what its child held: see `_invitation`.
    invited = getattr(child._popen, "_invited", None)
    if invited is not None:
        from ._phalanx import cancel_child

        cancel_child(invited)


class BaseProcess:
    """A function running in a process of its own; the base of each context's ``Process``.

    Args:
        group: None; there for likeness with `threading.Thread`.
        target: what `run` calls, with ``args`` and ``kwargs``.
        name: by default one that tells the place in the family, like ``Process-1:2``.
        daemon: whether the process ends with this one, whichever way that ends, and may have no
            children. Inherited from this process if None.
    """

    _start_method: str | None = None
    # Whether the process ends with its parent though it is no daemon, and may have children.
    _follows_parent = False
    # Whether Ctrl-C stays held back until `run` lets it in itself: see `util.release_interrupt`.
    _holds_interrupt = False
    _popen: Popen | None
    _sentinel: int

    def _Popen(self) -> Popen:  # noqa: N802 (the name is the standard library's)
        raise NotImplementedError

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},  # noqa: B006 (never changed)
        *,
        daemon: bool | None = None,
    ) -> None:
        if group is not None:
            raise AssertionError("group has to be None: there are no process groups yet")
        self._identity: tuple[int, ...] = (*_current_process._identity, next(_process_counter))
        self._config: dict[str, Any] = _current_process._config.copy()
        self._parent_pid: int | None = os.getpid()
        self._parent_name = _current_process.name
        self._popen = None
        self._closed = False
        self._target = target
        self._args = tuple(args)
        self._kwargs = dict(kwargs)
        self._name = name or f"{type(self).__name__}-{':'.join(map(str, self._identity))}"
        if daemon is not None:
            self.daemon = daemon
        _note(self)

    # -- life ----------------------------------------------------------------------------------

    def run(self) -> None:
        """What the process does: call the target. May be overridden."""
        if self._target:
            self._target(*self._args, **self._kwargs)

    def start(self) -> None:
        """Start the process. At most once, and from the process that made this object."""
        self._check_closed()
        if self._popen is not None:
            raise AssertionError("cannot start a process twice")
        if self._parent_pid != os.getpid():
            raise AssertionError("only the process that made a Process object can start it")
        if _current_process._config.get("daemon"):
            raise AssertionError(
                "daemonic processes are not allowed to have children: they would outlive them"
            )
        # Not each time: to look at all children at every start would take time that grows with the
        # square of their number.
        if len(_children) >= _crowd:
            _cleanup()
        popen, work = None, (self._target, self._args, self._kwargs)
        try:
            popen = self._Popen(self)  # type: ignore[call-arg]
            self._popen = popen
            self._sentinel = popen.sentinel
            # The target may refer to this object; letting go here spares a reference cycle.
            del self._target, self._args, self._kwargs
            _children.add(self)
            # Another library's Popen does not wait for this.
            if hasattr(popen, "_keep"):
                popen._keep()
        except BaseException:
            if popen is not None and hasattr(popen, "_undo"):
                popen._undo()
                self._popen = None
                self.__dict__.pop("_sentinel", None)
                self._target, self._args, self._kwargs = work
                _children.discard(self)
            raise

    def join(self, timeout: float | None = None) -> None:
        """Wait until the process has ended, or for ``timeout`` seconds."""
        self._check_closed()
        if self._parent_pid != os.getpid():
            raise AssertionError("can only join a child process")
        if self._popen is None:
            raise AssertionError("can only join a started process")
        if self._popen.wait(timeout) is not None:
            _forget(self)

    def is_alive(self) -> bool:
        """Whether the process has been started and has not ended."""
        self._check_closed()
        if self is _current_process:
            return True
        if self._parent_pid != os.getpid():
            raise AssertionError("can only test a child process")
        if self._popen is None:
            return False
        if self._popen.poll() is None:
            return True
        _forget(self)
        return False

    def terminate(self, *, children: bool = False) -> None:
        """End the process with SIGTERM.

        With ``children``, the processes it started, and those started by them, end as well.
        """
        self._signal(_SIGTERM, children)

    def kill(self, *, children: bool = False) -> None:
        """End the process with SIGKILL; with ``children`` all its descendants too."""
        self._signal(_SIGKILL, children)

    def interrupt(self) -> None:
        """Send SIGINT, which raises KeyboardInterrupt in a Python process."""
        self._signal(_SIGINT, False)

    def _signal(self, signum: int, children: bool) -> None:
        self._check_closed()
        popen = self._popen
        if popen is None:
            raise AttributeError("the process has not been started")
        if children and popen.poll() is None:
            from ._phalanx import signal_descendants

            signal_descendants(popen.pid, signum)
        if signum == _SIGTERM:
            popen.terminate()
        elif signum == _SIGKILL:
            popen.kill()
        else:
            popen._send_signal(signum)

    def close(self) -> None:
        """Give back what this object holds. ValueError while the process runs."""
        if self._popen is not None:
            if self._popen.poll() is None:
                raise ValueError(
                    "cannot close a process that is still running; call join() or terminate() first"
                )
            self._popen.close()
            self._popen = None
            del self._sentinel
            _children.discard(self)
        self._closed = True

    def _check_closed(self) -> None:
        if self._closed:
            raise ValueError("process object is closed")

    # -- what it is ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name: for people; it need not be unique."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise AssertionError(f"the name has to be a string, not {type(name).__name__}")
        self._name = name

    @property
    def daemon(self) -> bool:
        """Whether the process ends with its parent and may have no children."""
        return bool(self._config.get("daemon", False))

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:
        if self._popen is not None:
            raise AssertionError("the process has already started")
        self._config["daemon"] = daemonic

    @property
    def authkey(self) -> bytes:
        """The key by which processes of the family know each other on a `Connection`."""
        return self._config["authkey"]  # type: ignore[no-any-return]

    @authkey.setter
    def authkey(self, authkey: bytes) -> None:
        self._config["authkey"] = AuthenticationString(authkey)

    @property
    def exitcode(self) -> int | None:
        """How it ended: None before that, -N for signal N, else the exit status."""
        self._check_closed()
        if self._popen is None:
            return None
        return self._popen.poll()

    def exception(self) -> BaseException | None:
        """The exception that ended the process, None if none did.

        It is a copy made in the child, or a stand-in where it could not be pickled; its
        ``__cause__`` prints the traceback of the child. A process that was killed, or that ended
        by `sys.exit`, has none. ValueError while the process has not ended.
        """
        self._check_closed()
        if self._popen is None or self._popen.poll() is None:
            raise ValueError("the process has not ended; join() it first")
        return self._popen.exception()

    @property
    def ident(self) -> int | None:
        """The process id, None before the start."""
        self._check_closed()
        if self is _current_process:
            return os.getpid()
        return None if self._popen is None else self._popen.pid

    pid = ident

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process ends; see `connection.wait`."""
        self._check_closed()
        try:
            return self._sentinel
        except AttributeError:
            raise ValueError("process not started") from None

    def __repr__(self) -> str:
        exitcode = None
        if self is _current_process:
            status = "started"
        elif self._closed:
            status = "closed"
        elif self._parent_pid != os.getpid():
            status = "unknown"
        elif self._popen is None:
            status = "initial"
        else:
            exitcode = self._popen.poll()
            status = "started" if exitcode is None else "stopped"
        info = [type(self).__name__, f"name={self._name!r}"]
        if self._popen is not None:
            info.append(f"pid={self._popen.pid}")
        info.append(f"parent={self._parent_pid}")
        info.append(status)
        if exitcode is not None:
            info.append(f"exitcode={_exitcode_name(exitcode)}")
        if self.daemon:
            info.append("daemon")
        return f"<{' '.join(info)}>"

    # -- in the child --------------------------------------------------------------------------

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        """Become this process, run, and say with which exit code to end."""
        global _current_process, _forked_from, _parent_process, _process_counter, _children
        # They import this module. Import statements would cost each child 18 page faults.
        if _UTIL not in sys.modules:  # a child of another library's Popen
            __import__(_UTIL)
        context, util = sys.modules[_CONTEXT], sys.modules[_UTIL]
        exitcode = 1
        try:
            if self._start_method is not None:
                context._force_start_method(self._start_method)
            _process_counter = count(1)
            _children = set()
            util._close_stdin()
            # Kept: to let the object go would copy ten pages of the parent's.
            _forked_from = _current_process
            _current_process = self
            _parent_process = self._parent_name, self._parent_pid, parent_sentinel
            # Without this module, which takes a while to import, there are no threads.
            threading: Any = sys.modules.get("threading")
            if threading and getattr(threading, "_HAVE_THREAD_NATIVE_ID", False):
                threading.main_thread()._set_native_id()
            self._after_fork()
            util._name_log_records()
            util.info("child process calling self.run()")
            try:
                if not self._holds_interrupt:
                    util.release_interrupt()
                self.run()
                exitcode = 0
            finally:
                if not _CHILDREN_RUN_ATEXIT:
                    util._exit_function()
        except SystemExit as exit_:
            if exit_.code is None:
                exitcode = 0
            elif isinstance(exit_.code, int):
                exitcode = exit_.code
            else:
                sys.stderr.write(f"{exit_.code}\n")
                exitcode = 1
        except BaseException as error:
            exitcode = 1
            from ._failure import record

            text = record(error)
            sys.stderr.write(f"Process {self.name}:\n{text}")
        finally:
            if threading := sys.modules.get("threading"):
                threading._shutdown()
            util.info("process exiting with exitcode %d", exitcode)
            util._flush_std_streams()
        return exitcode

    @staticmethod
    def _after_fork() -> None:
        util = sys.modules[_UTIL]
        util._finalizer_registry.clear()
        util._run_after_forkers()


class AuthenticationString(bytes):
    """A key that refuses to be pickled, but to a child that is being started."""

    def __reduce__(self) -> tuple[Any, ...]:
        from .context import get_spawning_popen

        if get_spawning_popen() is None:
            raise TypeError(
                "an AuthenticationString is a secret, so it can be pickled only for a child "
                "that is being started"
            )
        return AuthenticationString, (bytes(self),)


class _ParentProcess(BaseProcess):
    """The process that started this one, seen from here."""

    def __init__(self, name: str, pid: int | None, sentinel: int | None) -> None:
        self._identity = ()
        self._name = name
        self._pid = pid
        self._parent_pid = None
        self._popen = None
        self._closed = False
        if sentinel is not None:
            self._sentinel = sentinel
        self._config = {}

    def is_alive(self) -> bool:
        from ._phalanx import wait_readable

        return not wait_readable(self._sentinel, 0.0)

    @property
    def ident(self) -> int | None:
        return self._pid

    pid = ident

    def join(self, timeout: float | None = None) -> None:
        """Wait until the parent has ended, or for ``timeout`` seconds."""
        from ._phalanx import wait_readable

        wait_readable(self._sentinel, timeout)


class _MainProcess(BaseProcess):
    """The first process of a program."""

    def __init__(self) -> None:
        self._identity = ()
        self._name = "MainProcess"
        self._parent_pid = None
        self._popen = None
        self._closed = False
        # All descendants inherit what is in here.
        self._config = {
            "authkey": AuthenticationString(os.urandom(32)),
            "semprefix": "/mp",
        }

    def close(self) -> None:
        """Nothing: this process cannot be closed from within."""


# Made from its name, pid and sentinel when somebody asks for it: most children do not.
_parent_process: BaseProcess | tuple[str, int | None, int | None] | None = None
_current_process: BaseProcess = _MainProcess()
_forked_from: BaseProcess | None = None
_process_counter = count(1)
_children: set[BaseProcess] = set()
_crowd = 8  # so many children in `_children` are looked through at the next start
del _MainProcess

# Every Process object that has not been collected, for tests. A weak set from the first on: its
# module took 0.4 of the 20 ms of a child of spawn, which makes none.
_dangling: set[BaseProcess] | WeakSet[BaseProcess] = set()
_danglings: dict[str, WeakSet[BaseProcess]] = {}


def _note(process: BaseProcess) -> None:
    global _dangling
    if type(_dangling) is set:
        from _weakrefset import WeakSet

        # Threads that come here at once must find the same one; setdefault() is one step.
        _dangling = _danglings.setdefault("", WeakSet())
    _dangling.add(process)


def _exitcode_name(exitcode: int) -> str:
    """``-SIGTERM`` for -15, and the number itself for a status."""
    if exitcode < 0:
        import signal

        try:
            return f"-{signal.Signals(-exitcode).name}"
        except ValueError:
            pass
    return str(exitcode)
