"""The fork server: a process that is started clean, and forks a child for each request.

The server (`main`) imports what the children will need, forks two children ahead as soon as it has
been used, and is single-threaded, so forking it is safe. Requests come over a socket pair: it has
no address, so only the processes that inherited its other end can ask. Each request brings the
caller's environment, directory, umask, arguments, import path, standard streams and descriptors,
and the child begins with those, not with the ones of the server's own start. The server has applied
what it was started with, so that a child to which nothing else has come need not do it again.

The loop itself is native; see the module ``process::zygote`` of the crate.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import gc
import io
import os
import pickle
import struct
import sys
from _thread import allocate_lock

from . import _install, _phalanx, context, popen_fork, process, resource_tracker, spawn, util

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = [
    "ensure_running",
    "get_inherited_fds",
    "connect_to_new_process",
    "set_forkserver_preload",
]

MAXFDS_TO_SEND = 256
SIGNED_STRUCT = struct.Struct("q")

# What a request says besides its descriptors: place in the family, options, which standard streams
# come along, and how many descriptors are for the resource tracker.
_NOTE = struct.Struct("Qiii")
_HAS_STREAM = (1, 2, 4)

_ATTEMPTS = 5

# Modules that every child uses: imported once, in the server.
_OURS = ("connection", "context", "process", "queues", "reduction", "spawn", "synchronize", "util")


class ForkServer:
    """This program's fork server, started by the first use."""

    def __init__(self) -> None:
        self._forkserver_address: str | None = None
        self._forkserver_alive_fd: int | None = None
        self._forkserver_pid: int | None = None
        self._inherited_fds: list[int] | None = None
        self._lock = allocate_lock()
        self._preload_modules: list[str] = ["__main__"]
        self._preload_on_error = "ignore"
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = allocate_lock()
        self._forkserver_pid = None  # it is not a child of this process

    def _stop(self) -> None:
        """End the server and wait for its end."""
        with self._lock:
            self._stop_unlocked()

    def _stop_unlocked(self) -> None:
        if self._forkserver_alive_fd is not None:
            os.close(self._forkserver_alive_fd)
            self._forkserver_alive_fd = None
        if self._forkserver_pid is not None:
            try:
                os.waitpid(self._forkserver_pid, 0)
            except ChildProcessError:
                pass
            self._forkserver_pid = None

    def set_forkserver_preload(
        self, modules_names: Sequence[str], *, on_error: str = "ignore"
    ) -> None:
        """Modules that the server imports at its start. Without effect once it runs.

        Args:
            on_error: what to do about a module that cannot be imported. "ignore": nothing, the
                children that import it will fail. "warn": an ImportWarning, in the server. "fail":
                the server ends with a traceback, and starting a child raises EOFError or
                ConnectionError.
        """
        if not all(type(name) is str for name in modules_names):
            raise TypeError("module_names must be a list of strings")
        if on_error not in ("ignore", "warn", "fail"):
            raise ValueError(f"on_error must be 'ignore', 'warn', or 'fail', not {on_error!r}")
        self._preload_modules = list(modules_names)
        self._preload_on_error = on_error

    def get_inherited_fds(self) -> list[int] | None:
        """In a child of the server: the descriptors its parent sent along; else None."""
        return self._inherited_fds

    def ensure_running(self) -> None:
        """Start the server, or another one if it has died."""
        with self._lock:
            if self._forkserver_alive_fd is not None:
                if _phalanx.zygote_alive(self._forkserver_alive_fd):
                    return
                self._stop_unlocked()
            self._launch()

    def _launch(self) -> None:
        import socket

        server = _phalanx.Child()
        file = server.write("phalanx-preparation", self._preparation())
        _phalanx.ensure_arena()
        arena = _phalanx.arena_fd()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = (
                f"from {__name__} import main; "
                f"main({theirs.fileno()}, {arena}, {self._preload_modules!r}, "
                f"sys_path={sys.path!r}, installed={_install.is_installed()}, "
                f"interrupt_held={_phalanx.interrupt_expected()}, prepared={file}, "
                f"on_error={self._preload_on_error!r})"
            )
            exe = spawn.get_executable()
            args = [exe, *util._args_from_interpreter_flags(), "-c", command]
            passed = [theirs.fileno(), arena, file]
            server.spawn(os.fsencode(exe), [os.fsencode(arg) for arg in args], passed)
        self._forkserver_pid = server.pid
        self._forkserver_alive_fd = ours.detach()
        server.keep()

    def _preparation(self) -> bytes:
        """What children will have to take over, unless it changes."""
        data = preparation_data("")
        del data["name"]
        if "__main__" not in self._preload_modules:
            data = {key: data[key] for key in data if not key.startswith("init_main")}
        file = io.BytesIO()
        popen = context.get_spawning_popen()
        context.set_spawning_popen(self)  # so that the key may be pickled
        try:
            context._default_context.reducer.dump(data, file)
        finally:
            context.set_spawning_popen(popen)
        return file.getvalue()

    def start(
        self, child: _phalanx.Child, options: int, fds: Sequence[int], *, watched: bool
    ) -> None:
        """Have ``child`` started, which has a place in the family and, in its file, what
        `spawn.pickle_for_child` gave.

        Args:
            options: see `spawn.options_of`.
            fds: descriptors for the child; see `get_inherited_fds`.
            watched: whether the server ends the child when this process ends.
        """
        if len(fds) + 16 > MAXFDS_TO_SEND:
            raise ValueError(f"too many descriptors for a child: {len(fds)}")
        strict = self._preload_on_error == "fail"
        for attempt in range(_ATTEMPTS):
            self.ensure_running()
            control = self._forkserver_alive_fd
            assert control is not None
            tracker = resource_tracker._resource_tracker.reserve()
            streams = [fd for fd in range(3) if _is_open(fd)]
            present = sum(_HAS_STREAM[fd] for fd in streams)
            note = _NOTE.pack(child.place, options, present, len(tracker))
            sent = [child.file, control, _phalanx.arena_fd(), *tracker, *streams, *fds]
            try:
                return child.ask(control, note, sent, watched)
            except (BrokenPipeError, ConnectionResetError, EOFError) as error:
                # The server or the child it had ready died with the request: ask again, unless it
                # was told to die of a module, and would do so once more.
                if strict or attempt == _ATTEMPTS - 1:
                    if hasattr(error, "add_note"):
                        error.add_note(
                            "Forkserver process may have crashed at its start: see its traceback "
                            f"on stderr. It was to preload {self._preload_modules}."
                        )
                    raise
        raise AssertionError("not reached")

    def connect_to_new_process(self, fds: Sequence[int]) -> tuple[int, int]:
        """Have a child started that gets its Process object by a pipe.

        The caller writes two pickles to the second descriptor that is returned: of what
        `spawn.get_preparation_data` gives, and of the Process object. From the first it reads the
        child's pid and, when the child has ended, its exit code, both by `read_signed`. The child
        gets copies of `fds`: see `get_inherited_fds`. (A Process's own start needs none of that.)
        """
        from ._relay import connect

        return connect(fds)


def preparation_data(name: str) -> dict[str, Any]:
    """What `spawn.get_preparation_data` gives, and what the child of a server lacks beyond it."""
    data = spawn.get_preparation_data(name)
    data["environ"] = dict(getattr(os.environ, "_data", os.environb))
    data["umask"] = _phalanx.umask()
    return data


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def main(
    control: int,
    arena: int,
    preload: Sequence[str],
    sys_path: list[str] | None = None,
    installed: bool = False,
    interrupt_held: bool = False,
    prepared: int | None = None,
    on_error: str = "ignore",
) -> None:
    """The program of the server.

    Args:
        control: the socket on which requests come.
        arena: the family's memory, for preloaded modules that make shared objects.
        interrupt_held: whether this process began with Ctrl-C held back.
        prepared: a file with what `ForkServer._preparation` gave.
        on_error: see `ForkServer.set_forkserver_preload`.
    """
    util.hold_interrupt(interrupt_held)
    os.set_inheritable(control, False)
    _phalanx.join_later(arena)
    # Ctrl-C is for the children; and their ends have to be seen, also if this process was started
    # with SIGCHLD ignored. (The functions behind those of `signal`, which make enumerations.)
    handlers = {
        number: _signal.signal(number, handler)
        for number, handler in (
            (_signal.SIGINT, _signal.SIG_IGN),
            (_signal.SIGCHLD, _signal.SIG_DFL),
        )
    }
    util.release_interrupt()
    if sys_path is not None:
        sys.path[:] = sys_path
    if installed:
        _install.install()
    for name in _OURS:
        _import(f"{__package__}.{name}")
    if prepared is not None:
        os.set_inheritable(prepared, False)
        spawn.prepared = _prepare(prepared, preload, on_error)
    else:
        _preload(preload, on_error)
    util._close_stdin()
    rehearsal = _rehearsal()
    # What is there now will not go, and looking at it would copy it into every child. (With counts
    # of references that never change a child touched 310 pages instead of 389, but a start was no
    # faster by more than the measurements' noise.)
    gc.collect()
    gc.freeze()
    zygote = _phalanx.Zygote(control)
    while zygote.wait():
        util._flush_std_streams()
        pid = os.fork()
        if pid == 0:
            _be_child(zygote, handlers, rehearsal)
        zygote.forked(pid)
    sys.exit(0)


def _prepare(file: int, preload: Sequence[str], on_error: str) -> bytes:
    """Do for all children what each would have to do; what that was, or nothing if it failed."""
    prepared = spawn._read_all(file)
    os.close(file)
    data = pickle.loads(prepared)
    me: Any = process.current_process()
    me._inheriting = True
    before = sys.modules["__main__"]
    try:
        spawn.prepare(data)
    except BaseException as error:
        # The main module starts processes without a guard, or fails: the children will say so.
        sys.modules["__main__"] = before
        prepared = b""
        _report("__main__", error, on_error)
    finally:
        del me._inheriting
    _preload(preload, on_error)
    spawn.take_surroundings(data)
    return prepared


def _preload(names: Sequence[str], on_error: str) -> None:
    for name in names:
        if name != "__main__":
            _import(name, on_error)


def _import(name: str, on_error: str = "ignore") -> None:
    try:
        __import__(name)
    except Exception as error:
        _report(f"module {name!r}", error, on_error)


def _report(what: str, error: BaseException, on_error: str) -> None:
    """Do what `set_forkserver_preload` was told about what could not be imported."""
    if on_error == "fail":
        raise error
    if on_error == "warn":
        import warnings

        warnings.warn(f"Failed to preload {what}: {error}", ImportWarning, stacklevel=2)


def _rehearsal() -> bytes:
    """What `_rehearse` takes, after a few rehearsals here: the interpreter adapts to what it runs
    often, and would do so in each child anew."""
    actor = context.ForkServerProcess(target=int)
    actor._config = {}
    rehearsal = pickle.dumps(actor)
    for _ in range(20):
        _rehearse(rehearsal)
    return rehearsal


def _rehearse(rehearsal: bytes) -> None:
    """Do what a request will ask for, without an effect: the pages that this writes to are this
    process's own then. A start and its end took 1.2 ms instead of 1.4."""
    try:
        file = _phalanx.memfd("phalanx-rehearsal", rehearsal)
        pickle.load(io.BytesIO(spawn._read_all(file)))
        os.close(file)
    except OSError:
        pass  # no descriptor is left here; the request may need none
    util._close_stdin()
    util._flush_std_streams()


def _be_child(zygote: Any, handlers: dict[int, Any], rehearsal: bytes) -> None:
    """Wait for a request, in a child that was forked ahead, and run it."""
    code = 1
    try:
        # Whatever can be done before there is a request.
        popen_fork.prepare_forked()
        _rehearse(rehearsal)
        request = zygote.receive()
        if request is None:
            os._exit(0)
        util.hold_interrupt()
        for number, handler in handlers.items():
            _signal.signal(number, handler)
        code = _serve(*request)
    except Exception:
        sys.excepthook(*sys.exc_info())
        util._flush_std_streams()
    finally:
        popen_fork.end_forked(code)


def _serve(note: bytes, fds: list[int], server: int, parent_sentinel: int) -> int:
    member, options, present, trackers = _NOTE.unpack(note)
    file, _forkserver._forkserver_alive_fd, arena, *others = fds
    tracker, rest = others[:trackers], iter(others[trackers:])
    for stream, bit in enumerate(_HAS_STREAM):
        if present & bit:
            fd = next(rest)
            os.dup2(fd, stream)
            os.close(fd)
    _forkserver._inherited_fds = list(rest)
    spawn.become_child(options, server, arena, member, tracker, os.dup(file))
    return spawn._main(file, parent_sentinel)


def read_signed(fd: int) -> int:
    """Read a number that `write_signed` wrote; EOFError if none comes."""
    data = b""
    while len(data) < SIGNED_STRUCT.size:
        part = os.read(fd, SIGNED_STRUCT.size - len(data))
        if not part:
            raise EOFError("unexpected EOF")
        data += part
    return SIGNED_STRUCT.unpack(data)[0]  # type: ignore[no-any-return]


def write_signed(fd: int, n: int) -> None:
    """Write a number, 8 bytes."""
    data = SIGNED_STRUCT.pack(n)
    while data:
        data = data[os.write(fd, data) :]


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
