"""A helper process that removes what has a name in the system once nobody can any more.

Phalanx's own objects lie in anonymous memory and need no tracker; named shared memory (the module
`shared_memory`) does. The tracker reads the names from a pipe. Every process of the program holds
the pipe's write end, so when the last one has ended, however it did, the tracker sees the pipe's
end and removes the names that were not taken back.

It is started when it is first needed, but the pipe is made before the first child, so that all
processes of a program share one tracker whichever of them starts it: a name that a child has made
may outlive the child. An eventfd beside the pipe holds the one permission to start the tracker.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from _thread import RLock

from . import spawn, util

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

__all__ = ["ensure_running", "register", "unregister"]

_IGNORED_SIGNALS = (2, 15)  # SIGINT, SIGTERM; `signal` takes a while to import

# A line of the pipe has to be written in one piece, which POSIX promises up to this length.
_LONGEST_LINE = 512


def cleanup_noop(name: str) -> NoReturn:
    """Nothing has this type; it is there for the probe of the pipe."""
    raise RuntimeError("noop should never be registered or cleaned up")


def _unlink_shared_memory(name: str) -> None:
    import _posixshmem  # type: ignore[import-not-found]

    _posixshmem.shm_unlink(name)


# Type of resource -> what removes a name of it. Semaphores are not here: ours have no names.
_CLEANUP_FUNCS: dict[str, Callable[[str], object]] = {
    "noop": cleanup_noop,
    "shared_memory": _unlink_shared_memory,
}
if sys.version_info >= (3, 13):
    _CLEANUP_FUNCS["dummy"] = lambda name: None  # CPython's tests let one of these leak


def _remove_temp_dir(name: str) -> None:
    import shutil

    shutil.rmtree(bytes.fromhex(name))


# And what the standard library lets lie when a program is killed. It goes without a word.
_OWN_CLEANUP_FUNCS: dict[str, Callable[[str], object]] = {"tempdir": _remove_temp_dir}


def _exists(name: str, rtype: str) -> bool:
    if rtype == "shared_memory":
        return os.path.exists(f"/dev/shm/{name.lstrip('/')}")
    return rtype != "tempdir" or os.path.exists(bytes.fromhex(name))


class ReentrantCallError(RuntimeError):
    """The tracker was called by a finalizer that ran inside a call of the tracker."""


class ResourceTracker:
    """This process's end of the pipe, and the tracker if this process started it."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._busy = False
        self._fd: int | None = None
        # The read end and the permission, as long as this process does not know of a tracker.
        self._reserved: tuple[int, int] | None = None
        self._pid: int | None = None
        self._exitcode: int | None = None
        # What this process has registered: for another tracker, if this one is killed.
        self._known: set[tuple[str, str]] = set()

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
                self._drop_reservation()
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

    def reserve(self) -> list[int]:
        """What a child has to inherit to share this tracker, which need not run; see `inherit`."""
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    read, self._fd = os.pipe()
                    self._reserved = (read, os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        assert self._fd is not None
        return [self._fd, *(self._reserved or ())]

    def inherit(self, fds: list[int]) -> None:
        """In a child: take what the parent's `reserve` gave."""
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fd, *rest = fds
        self._reserved = (rest[0], rest[1]) if rest else None
        self._pid = None

    def _after_fork(self) -> None:
        self._lock = RLock()
        self._busy = False
        self._pid = None  # it is not a child of this process

    def _drop_reservation(self) -> None:
        if self._reserved is not None:
            for fd in self._reserved:
                os.close(fd)
            self._reserved = None

    def ensure_running(self) -> None:
        """Start the tracker unless this process or an ancestor has."""
        with self._lock:
            self._enter()
            try:
                if self._reserved is not None:
                    read, permission = self._reserved
                    try:
                        os.eventfd_read(permission)
                    except BlockingIOError:  # another process has started it
                        pass
                    else:
                        self._pid = self._spawn(read)
                    self._drop_reservation()
                if self._fd is not None:
                    if self._check_alive():
                        return
                    self._bury()
                    warnings.warn(
                        "resource_tracker: process died unexpectedly, relaunching.  "
                        "Some resources might leak.",
                        stacklevel=2,
                    )
                read, self._fd = os.pipe()
                try:
                    self._pid = self._spawn(read)
                except BaseException:
                    os.close(self._fd)
                    self._fd = None
                    raise
                finally:
                    os.close(read)
                # Others may have removed some, and told the tracker that is no more.
                for known in self._known.copy():
                    if _exists(*known):
                        self._write("REGISTER", *known)
                    else:
                        self._known.discard(known)
            finally:
                self._busy = False

    def revive(self) -> None:
        """Start another tracker if there was one and it has been killed."""
        if self._fd is not None and self._reserved is None:
            self.ensure_running()

    def _bury(self) -> None:
        assert self._fd is not None
        os.close(self._fd)
        if self._pid is not None:  # else another process has started it
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass
        self._fd = self._pid = self._exitcode = None

    @staticmethod
    def _spawn(read: int) -> int:
        """Start a tracker that reads from ``read``; its pid."""
        import signal

        passed = [read]
        try:
            passed.append(sys.stderr.fileno())
        except Exception:  # there is no stderr
            pass
        command = f"from {__name__} import main; main({read})"
        exe = spawn.get_executable()
        args = [exe, *util._args_from_interpreter_flags(), "-c", command]
        # The tracker inherits the mask, so no Ctrl-C ends it before it ignores them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED_SIGNALS)
        try:
            return util.spawnv_passfds(exe, args, passed)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)

    def _check_alive(self) -> bool:
        """Whether the tracker runs, or for all that this process can see may run."""
        assert self._fd is not None
        if self._pid is not None:
            # The pipe may have other readers: children that have not needed the tracker yet.
            try:
                if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return False
            except ChildProcessError:  # somebody else has reaped it, or started it
                pass
        try:
            os.write(self._fd, b"PROBE:0:noop\n")
        except OSError:
            return False
        return True

    def register(self, name: str, rtype: str) -> None:
        """Have ``name`` removed at the end of the program, unless `unregister` comes first."""
        self._send("REGISTER", name, rtype)
        self._known.add((name, rtype))

    def unregister(self, name: str, rtype: str) -> None:
        """Forget ``name``: it has been removed."""
        self._send("UNREGISTER", name, rtype)
        self._known.discard((name, rtype))

    def _send(self, command: str, name: str, rtype: str) -> None:
        try:
            self.ensure_running()
        except ReentrantCallError:
            warnings.warn(
                "the resource tracker was called while it was being called, which it does not "
                f"support; the {rtype} {name!r} might leak",
                stacklevel=3,
            )
        self._write(command, name, rtype)

    def _write(self, command: str, name: str, rtype: str) -> None:
        line = f"{command}:{name}:{rtype}\n".encode("ascii")
        if len(line) > _LONGEST_LINE:
            raise ValueError(
                f"the name of a {rtype} is too long to track: {len(line)} bytes with its type, "
                f"{_LONGEST_LINE} are allowed"
            )
        assert self._fd is not None
        os.write(self._fd, line)


_resource_tracker = ResourceTracker()
os.register_at_fork(after_in_child=_resource_tracker._after_fork)
if spawn.inherited_tracker:
    _resource_tracker.inherit(spawn.inherited_tracker)
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd
revive = _resource_tracker.revive


def main(fd: int) -> NoReturn:
    """The program of the tracker; ``fd`` is the read end of the pipe."""
    import signal

    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED_SIGNALS)
    for stream in (sys.stdin, sys.stdout):
        try:
            stream.close()
        except Exception:
            pass
    names: dict[str, set[str]] = {rtype: set() for rtype in _CLEANUP_FUNCS | _OWN_CLEANUP_FUNCS}
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
        if remove := _OWN_CLEANUP_FUNCS.get(rtype):
            for name in left:
                with contextlib.suppress(OSError):
                    remove(name)
            continue
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
