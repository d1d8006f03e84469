"""The client's side of a session: one process, and one manager's server.

Each thread that calls methods has a connection of its own, since a call may block. Beside those a
session has one connection for what concerns no object's methods: making objects, counting
references. When the last of them closes, the server knows that the process is gone (or has no more
proxies), and takes back what it held.
"""

from __future__ import annotations

import enum
import os
import threading
from collections import deque
from typing import Any

from .. import _phalanx, connection, process, reduction, util
from .clients import is_hung_up
from .protocol import ANSWERS_ITSELF, RemoteError, Token, dispatch, listener_client

__all__ = [
    "Kind",
    "Session",
    "Watch",
    "forget_session",
    "gone",
    "retire_session",
    "revive_session",
    "session_of",
]

# Servers that nothing in this process refers to, to which it stays connected.
_MOST_IDLE = 4

_LOST = (EOFError, BrokenPipeError, ConnectionResetError)


def gone(error: BaseException, token: Token | Any, what: str) -> Exception:
    """Return an error that says which server is gone, of the kind that `error` is."""
    if isinstance(token, Token):
        address, what = token.address, f"{what}() of a shared {token.typeid}"
    else:
        address = token
    text = f"the manager at {address!r} has ended or cannot be reached (in {what})"
    if isinstance(error, EOFError):
        return EOFError(text)
    if isinstance(error, OSError) and error.errno is not None:
        return type(error)(error.errno, f"{os.strerror(error.errno)}: {text}")
    return ConnectionError(f"{error}: {text}")


class Kind(enum.Enum):
    """What is at the other end of a connection, and what kind that is."""

    STRANGER = 0  # a server of the standard library
    SOCKET = 1  # one of this package
    PIPE = 2  # one of this family


class Session:
    """This process, as the server at an address knows it."""

    def __init__(self, address: Any, serializer: str, authkey: bytes) -> None:
        self.address = address
        self.serializer = serializer
        self.authkey = authkey
        self._renew()
        util.register_after_fork(self, Session._renew_if_forked)

    def _renew(self) -> None:
        """Begin anew: the child of a fork is another process to the server."""
        self._pid = os.getpid()
        self._name = os.urandom(16).hex()
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, str]] = deque()
        # None: not connected.
        self._control: tuple[Any, Kind] | None = None

    def _renew_if_forked(self) -> None:
        # A child of the fork server runs its hooks after it has unpickled its arguments.
        if self._pid != os.getpid():
            self._renew()

    def connect(self, thread: str, name: str) -> tuple[Any, Kind]:
        """Open a connection for requests to objects."""
        util.debug("making connection to manager")
        identity = f"{name}@{self._name}.{thread}"
        if self.serializer == "pickle" and isinstance(self.address, (str, bytes)):
            identity += f".{_phalanx.family() if _phalanx.has_arena() else 0:x}"
        try:
            conn = listener_client[self.serializer][1](self.address, authkey=self.authkey)
            try:
                answer = dispatch(conn, None, "accept_connection", (identity,))
                if isinstance(answer, tuple):
                    return self._move_to_pipe(conn, *answer), Kind.PIPE
            except BaseException:
                conn.close()
                raise
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            raise gone(error, self.address, "connecting") from None
        return conn, Kind.SOCKET if answer == ANSWERS_ITSELF else Kind.STRANGER

    def _move_to_pipe(self, conn: Any, family: int, handle: int) -> Any:
        """Go on over a pipe that a server of this family has made."""
        pipe = connection.Connection.__new__(connection.Connection)
        pipe._attach(family, handle, reduction.recv_handle(conn), True, True)
        conn.send_bytes(b"arrived")
        conn.close()
        return pipe

    def call(self, function: str, /, *args: Any, **kwds: Any) -> Any:
        """Call a function of the server itself."""
        self._renew_if_forked()  # by other means than ours, which have done so
        with self._lock:
            try:
                result = self._call(function, args, kwds)
            finally:
                self._catch_up()
        self._catch_up_if_free()
        return result

    def call_later(self, function: str, ident: str) -> None:
        """Call a function soon, if not at once, and ignore what comes of it.

        For finalizers: they run at any moment, also while this very thread is in `call`.
        """
        self._waiting.append((function, ident))
        self._catch_up_if_free()

    def _catch_up_if_free(self) -> None:
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                self._catch_up()
            finally:
                self._lock.release()

    def _catch_up(self) -> None:
        while self._waiting:
            function, ident = self._waiting.popleft()
            try:
                self._call(function, (ident,), {})
            except Exception as error:
                util.debug("... %s failed: %s", function, error)

    def _call(self, function: str, args: Any, kwds: Any) -> Any:
        """Called under the lock."""
        fresh = self._control is None
        if self._control is None:
            self._control = self.connect("0", process.current_process().name)
        conn, kind = self._control
        if kind is Kind.STRANGER:
            return self._ask_apart(function, args, kwds)
        try:
            return dispatch(conn, None, function, args, kwds)
        except _LOST as error:
            self._hang_up()
            if fresh:
                raise gone(error, self.address, function) from None
        except Exception:
            raise
        except BaseException:
            self._hang_up()  # interrupted: the answer would be taken for that to the next question
            raise
        # The connection was an old one. A server may have been started anew at the same address.
        return self._call(function, args, kwds)

    def _ask_apart(self, function: str, args: Any, kwds: Any) -> Any:
        """Ask a server of the standard library: each question needs a connection of its own."""
        try:
            conn = listener_client[self.serializer][1](self.address, authkey=self.authkey)
            try:
                return dispatch(conn, None, function, args, kwds)
            finally:
                conn.close()
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            raise gone(error, self.address, function) from None

    def _hang_up(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control[0].close()

    def connection(self) -> Any:
        """The connection for questions to the server itself; None if there is none."""
        control = self._control
        return None if control is None else control[0]

    def _place(self) -> tuple[int, ...]:
        """Who leaves, for a server that is of the same family."""
        is_pipe = self._control is not None and self._control[1] is Kind.PIPE
        return (_phalanx.me(),) if is_pipe else ()

    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._control is not None

    def close(self) -> None:
        """Take leave and close the connection, unless it is in use this moment.

        Who leaves in good order keeps the locks it has not released, as with the standard library.
        """
        if self._pid == os.getpid() and self._lock.acquire(blocking=False):
            try:
                self._catch_up()
                if self._control is not None and self._control[1] is not Kind.STRANGER:
                    dispatch(self._control[0], None, "leave", self._place())
            except Exception as error:
                util.debug("... leave failed: %s", error)
            finally:
                self._hang_up()
                self._lock.release()


_sessions: dict[Any, Session] = {}


def session_of(address: Any, serializer: str, authkey: bytes | None = None) -> Session:
    """Return this process's session with the server at an address.

    Without a key it is the one that this process has used for that server before, or else the key
    of the process itself.
    """
    session = _sessions.get(address)
    if session is None:
        key = authkey if authkey is not None else process.current_process().authkey
        session = _sessions.setdefault(address, Session(address, serializer, key))
    elif authkey is not None and authkey != session.authkey:
        session.authkey = authkey
    return session


# By address, the longest idle first: what has the connections of threads.
_idle: dict[Any, util.ForkAwareLocal] = {}
_farewell: util.Finalize | None = None


def retire_session(address: Any, local: util.ForkAwareLocal) -> None:
    """Nothing in this process refers to the server at an address now.

    It stays connected nevertheless, for the next proxy that comes: each task of a pool may bring
    one. To connect anew for each cost the demo's tasks 1.6 ms of processor time (4.2 s instead of
    1.5 s in all).
    """
    global _farewell
    _idle.pop(address, None)
    _idle[address] = local
    session = _sessions.get(address)
    if session is None or not session.is_connected() or util.is_exiting():
        _hang_up(address)
        return
    if _farewell is None or not _farewell.still_active():
        # After the proxies have gone (10), or it would come before they are retired.
        _farewell = util.Finalize(None, _hang_up_all, exitpriority=5)
    for address in list(_idle)[:-_MOST_IDLE]:
        _hang_up(address)


def revive_session(address: Any) -> None:
    """Something refers to the server again."""
    _idle.pop(address, None)


def _hang_up(address: Any) -> None:
    local = _idle.pop(address, None)
    if local is not None and hasattr(local, "connection"):
        local.connection.close()
        del local.connection
    session = _sessions.get(address)
    if session is not None:
        session.close()


def _hang_up_all() -> None:
    for address in list(_idle):
        _hang_up(address)


def forget_session(address: Any) -> None:
    """Take leave of a server for good."""
    _hang_up(address)


class Watch:
    """Called now and then while this process waits for an object without asking the server: raises
    when the server is gone, or has no such object any more."""

    def __init__(self, session: Session, token: Token) -> None:
        self._session = session
        self._token = token
        self._known = session.connection()

    def __call__(self) -> None:
        conn = self._session.connection()
        try:
            if conn is not None and conn is self._known and not is_hung_up(conn):
                return
        except (OSError, ValueError):
            pass  # another thread has closed it this moment
        # Another server may have been started at the same address: it does not know the object.
        try:
            self._session.call("get_methods", self._token)
        except RemoteError:
            raise gone(EOFError(), self._token, "wait") from None
        self._known = self._session.connection()
