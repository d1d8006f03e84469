"""Pickling for other processes: `ForkingPickler`, and how descriptors and sockets travel."""

from __future__ import annotations

import array
import copyreg
import functools
import io
import pickle
import socket
import sys
from abc import ABCMeta

from . import context

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO, Any, ClassVar

__all__ = [
    "send_handle",
    "recv_handle",
    "ForkingPickler",
    "register",
    "dump",
    "DupFd",
    "sendfds",
    "recvfds",
]

HAVE_SEND_HANDLE = True

# Only some systems need the receipt of descriptors to be confirmed; Linux does not.
ACKNOWLEDGE = False


class ForkingPickler(pickle.Pickler):
    """A pickler with reducers of its own, which other pickles do not see; see `register`."""

    _extra_reducers: ClassVar[dict[type, Callable[[Any], Any]]] = {}
    _copyreg_dispatch_table = copyreg.dispatch_table

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.dispatch_table: Any = self._copyreg_dispatch_table.copy()
        if standard := context._standard("reduction"):
            self.dispatch_table.update(standard.ForkingPickler._extra_reducers)
        self.dispatch_table.update(self._extra_reducers)

    @classmethod
    def register(cls, type: type, reduce: Callable[[Any], Any]) -> None:  # noqa: A002
        """Let ``reduce(obj)`` say how objects of ``type`` are pickled for other processes."""
        cls._extra_reducers[type] = reduce

    @classmethod
    def dumps(cls, obj: Any, protocol: int | None = None) -> memoryview:
        """The pickled object as a buffer."""
        file = io.BytesIO()
        cls(file, protocol).dump(obj)
        return file.getbuffer()

    loads = pickle.loads


register = ForkingPickler.register


def dump(obj: Any, file: IO[bytes], protocol: int | None = None) -> None:
    """Like `pickle.dump`, with `ForkingPickler`."""
    ForkingPickler(file, protocol).dump(obj)


def dump_by_value(obj: Any, file: IO[bytes], protocol: int | None = None) -> None:
    """Like `dump`, for functions and classes that cannot be imported by their name.

    Lambdas, closures and what is defined in a ``__main__`` that has no file are pickled with their
    code, by cloudpickle. ImportError if that is not installed.
    """
    import cloudpickle  # type: ignore[import-untyped]

    pickler = cloudpickle.Pickler(file, protocol)
    pickler.dispatch_table = {
        **copyreg.dispatch_table,
        **pickler.dispatch_table,
        **ForkingPickler._extra_reducers,
    }
    pickler.dump(obj)


def pickle_function_by_value(function: Any, refused: BaseException | None) -> bytes | None:
    """The function's pickle by cloudpickle, if that is installed and called for; else None.

    It is called for if pickle has ``refused``, and for functions of a ``__main__`` without a file
    (a prompt, ``-c``, a program on standard input): they can be pickled by name, but a worker would
    not find them.
    """
    from .spawn import main_module

    if refused is None and main_module():
        return None
    try:
        import cloudpickle  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return None
    try:
        return bytes(cloudpickle.dumps(function))
    except Exception:
        if refused is None:
            return None
        raise refused from None


# -- descriptors -----------------------------------------------------------------------------------


def sendfds(sock: socket.socket, fds: Iterable[int]) -> None:
    """Send descriptors over a Unix socket, with one byte: their number modulo 256."""
    numbers = array.array("i", fds)
    sock.sendmsg([bytes([len(numbers) % 256])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])


def recvfds(sock: socket.socket, size: int) -> list[int]:
    """Receive at most ``size`` descriptors that `sendfds` sent.

    EOFError when the other side is gone, RuntimeError if something else comes.
    """
    numbers = array.array("i")
    message, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(numbers.itemsize * size))
    if not message and not ancillary:
        raise EOFError("the other side closed the socket instead of sending a descriptor")
    if len(ancillary) != 1:
        raise RuntimeError(f"expected descriptors, received {len(ancillary)} items instead of 1")
    level, kind, data = ancillary[0]
    if level != socket.SOL_SOCKET or kind != socket.SCM_RIGHTS or len(data) % numbers.itemsize:
        raise RuntimeError("expected descriptors, received something else")
    numbers.frombytes(data)
    if len(numbers) % 256 != message[0]:
        raise AssertionError(f"announced {message[0]} descriptors, received {len(numbers)}")
    return list(numbers)


def send_handle(conn: Any, handle: int, destination_pid: int | None) -> None:
    """Send a descriptor over a Connection that is a Unix socket."""
    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sendfds(sock, [handle])


def recv_handle(conn: Any) -> int:
    """Receive a descriptor over a Connection that is a Unix socket."""
    with socket.fromfd(conn.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return recvfds(sock, 1)[0]


def DupFd(fd: int) -> Any:  # noqa: N802 (the name is the standard library's)
    """An object that can be pickled; its ``detach()`` gives the descriptor in another process."""
    popen = context.get_spawning_popen()
    if popen is not None:
        return popen.DupFd(popen.duplicate_for_child(fd))
    from . import resource_sharer

    return resource_sharer.DupFd(fd)


# -- methods, partials, sockets --------------------------------------------------------------------


def _reduce_method(m: Any) -> Any:
    owner = m.__class__ if m.__self__ is None else m.__self__
    return getattr, (owner, m.__func__.__name__)


def _reduce_method_descriptor(m: Any) -> Any:
    return getattr, (m.__objclass__, m.__name__)


def _reduce_partial(p: functools.partial[Any]) -> Any:
    return _rebuild_partial, (p.func, p.args, p.keywords or {})


def _rebuild_partial(func: Any, args: Any, keywords: Any) -> functools.partial[Any]:
    return functools.partial(func, *args, **keywords)


def _reduce_socket(s: socket.socket) -> Any:
    return _rebuild_socket, (DupFd(s.fileno()), s.family, s.type, s.proto)


def _rebuild_socket(df: Any, family: int, type: int, proto: int) -> socket.socket:  # noqa: A002
    return socket.socket(family, type, proto, fileno=df.detach())


class _C:
    def f(self) -> None:
        pass


def _register_all() -> None:
    register(type(_C().f), _reduce_method)
    register(type(list.append), _reduce_method_descriptor)
    register(type(int.__add__), _reduce_method_descriptor)
    register(functools.partial, _reduce_partial)
    register(socket.socket, _reduce_socket)
    # None of them while the module is still being imported: then it registers itself.
    sharedctypes = sys.modules.get(f"{__package__}.sharedctypes")
    if reduce_ctype := getattr(sharedctypes, "reduce_ctype", None):
        for shared_type in list(sharedctypes._types):  # type: ignore[union-attr]
            register(shared_type, reduce_ctype)
    connection = sys.modules.get(f"{__package__}.connection")
    if reduce_connection := getattr(connection, "reduce_connection", None):
        register(connection.Connection, reduce_connection)  # type: ignore[union-attr]


_register_all()


class AbstractReducer(metaclass=ABCMeta):  # noqa: B024 (as in the standard library)
    """A base for replacements of this module; see ``context.reducer``."""

    ForkingPickler = ForkingPickler
    register = register
    dump = dump
    send_handle = send_handle
    recv_handle = recv_handle
    sendfds = sendfds
    recvfds = recvfds
    DupFd = DupFd

    _reduce_method = _reduce_method
    _reduce_method_descriptor = _reduce_method_descriptor
    _rebuild_partial = _rebuild_partial
    _reduce_socket = _reduce_socket
    _rebuild_socket = _rebuild_socket

    def __init__(self, *args: Any) -> None:
        _register_all()
