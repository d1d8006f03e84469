"""A helper process that removes what has a name in the system once nobody can any more.

Phalanx's own objects lie in anonymous memory and need no tracker; named shared memory (the module
`shared_memory`) does. The tracker reads the names from a pipe. Every process of the program holds
the pipe's write end, so when the last one has ended, however it did, the tracker sees the pipe's
end and removes the names that were not taken back. It is started when it is first needed.
"""

from __future__ import annotations

import _posixshmem  # type: ignore[import-not-found]
import os
import signal
import sys
import threading
import warnings

from . import spawn, util

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

__all__ = ["ensure_running", "register", "unregister"]

_HAVE_SIGMASK = True
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# A line of the pipe has to be written in one piece, which POSIX promises up to this length.
_LONGEST_LINE = 512


def cleanup_noop(name: str) -> NoReturn:
    """Nothing has this type; it is there for the probe of the pipe."""
    raise RuntimeError("noop should never be registered or cleaned up")


# Type of resource -> what removes a name of it. Semaphores are not here: ours have no names.
_CLEANUP_FUNCS: dict[str, Callable[[str], object]] = {
    "noop": cleanup_noop,
    "dummy": lambda name: None,
    "shared_memory": _posixshmem.shm_unlink,
}


class ReentrantCallError(RuntimeError):
    """The tracker was called by a finalizer that ran inside a call of the tracker."""


class ResourceTracker:
    """This process's end of the pipe, and the tracker if this process started it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._fd: int | None = None
        self._pid: int | None = None
        self._exitcode: int | None = None

    def _enter(self) -> None:
        if self._busy:
            raise ReentrantCallError("reentrant call into the resource tracker")
        self._busy = True

    def _stop(self) -> None:
        """Close the pipe and wait for the tracker's end."""
        with self._lock:
            self._enter()
            try:
                if self._fd is None:
                    return
                os.close(self._fd)
                self._fd = None
                if self._pid is not None:
                    _, status = os.waitpid(self._pid, 0)
                    self._pid = None
                    self._exitcode = os.waitstatus_to_exitcode(status)
            finally:
                self._busy = False

    def getfd(self) -> int:
        """The write end of the pipe; the tracker runs afterwards."""
        self.ensure_running()
        assert self._fd is not None
        return self._fd

    def reserve(self) -> int | None:
        """What a child has to inherit to share this tracker: the pipe, if there is one."""
        return self._fd

    def ensure_running(self) -> None:
        """Start the tracker unless this process or an ancestor has."""
        with self._lock:
            self._enter()
            try:
                if self._fd is not None:
                    if self._check_alive():
                        return
                    self._bury()
                    warnings.warn(
                        "resource_tracker: process died unexpectedly, relaunching.  "
                        "Some resources might leak.",
                        stacklevel=2,
                    )
                self._launch()
            finally:
                self._busy = False

    def _bury(self) -> None:
        assert self._fd is not None
        os.close(self._fd)
        if self._pid is not None:  # else another process has started it
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass
        self._fd = self._pid = self._exitcode = None

    def _launch(self) -> None:
        passed = []
        try:
            passed.append(sys.stderr.fileno())
        except Exception:  # there is no stderr
            pass
        read, write = os.pipe()
        try:
            passed.append(read)
            command = f"from {__name__} import main; main({read})"
            exe = spawn.get_executable()
            args = [exe, *util._args_from_interpreter_flags(), "-c", command]
            # The child inherits the mask, so no Ctrl-C ends it before it ignores them.
            signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
            try:
                self._pid = util.spawnv_passfds(exe, args, passed)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        self._fd = write

    def _check_alive(self) -> bool:
        """Whether the pipe still has a reader."""
        assert self._fd is not None
        try:
            os.write(self._fd, b"PROBE:0:noop\n")
        except OSError:
            return False
        return True

    def register(self, name: str, rtype: str) -> None:
        """Have ``name`` removed at the end of the program, unless `unregister` comes first."""
        self._send("REGISTER", name, rtype)

    def unregister(self, name: str, rtype: str) -> None:
        """Forget ``name``: it has been removed."""
        self._send("UNREGISTER", name, rtype)

    def _send(self, command: str, name: str, rtype: str) -> None:
        try:
            self.ensure_running()
        except ReentrantCallError:
            warnings.warn(
                "the resource tracker was called while it was being called, which it does not "
                f"support; the {rtype} {name!r} might leak",
                stacklevel=3,
            )
        line = f"{command}:{name}:{rtype}\n".encode("ascii")
        if len(line) > _LONGEST_LINE:
            raise ValueError(
                f"the name of a {rtype} is too long to track: {len(line)} bytes with its type, "
                f"{_LONGEST_LINE} are allowed"
            )
        assert self._fd is not None
        os.write(self._fd, line)


_resource_tracker = ResourceTracker()
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd


def main(fd: int) -> NoReturn:
    """The program of the tracker; ``fd`` is the read end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)
    for stream in (sys.stdin, sys.stdout):
        try:
            stream.close()
        except Exception:
            pass
    names: dict[str, set[str]] = {rtype: set() for rtype in _CLEANUP_FUNCS}
    exitcode = 0
    try:
        with open(fd, "rb") as lines:
            for line in lines:
                try:
                    _obey(line, names)
                except Exception:
                    exitcode = 3
                    sys.excepthook(*sys.exc_info())
    finally:
        exitcode = _clean_up(names) or exitcode
        sys.exit(exitcode)


def _obey(line: bytes, names: dict[str, set[str]]) -> None:
    command, name, rtype = line.strip().decode("ascii").split(":")
    if rtype not in names:
        raise ValueError(f"cannot track {name!r}: there is no resource type {rtype!r}")
    if command == "REGISTER":
        names[rtype].add(name)
    elif command == "UNREGISTER":
        names[rtype].remove(name)
    elif command != "PROBE":
        raise RuntimeError(f"unrecognized command {command!r}")


def _clean_up(names: dict[str, set[str]]) -> int:
    """Remove what is left; the exit code for it, 0 if there was nothing."""
    exitcode = 0
    for rtype, left in names.items():
        if not left:
            continue
        exitcode = max(exitcode, 1)
        if rtype != "dummy":
            _warn(
                f"resource_tracker: There appear to be {len(left)} leaked {rtype} objects to "
                f"clean up at shutdown: {left}"
            )
        for name in left:
            try:
                _CLEANUP_FUNCS[rtype](name)
            except Exception as error:
                exitcode = 2
                _warn(f"resource_tracker: {name!r}: {error}")
    return exitcode


def _warn(message: str) -> None:
    try:
        warnings.warn(message, stacklevel=3)
    except Exception:  # warnings are errors here
        pass
