"""Who a server thread works for, and in whose name.

Each connection to a manager's server is served by a thread of its own, so what a thread does for
its client may block: a lock's `acquire`, a queue's `get`. The client may die meanwhile. So a thread
that waits looks now and then whether its client is there (`check_client`). What it claims it claims
in the name of a member of the family that stands for the client and ends with it: then all that
comes back which the client held.
"""

from __future__ import annotations

import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from .. import _phalanx

__all__ = [
    "Client",
    "ClientGone",
    "Session",
    "check_client",
    "current",
    "is_hung_up",
    "serve",
    "time_limit",
]

_NO_KWDS: dict[str, Any] = {}

_HANGUP = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


def _descriptor(conn: Any) -> int:
    # Not a pipe's fileno(): to ask for that would make the pipe a stream.
    fd: int = getattr(conn, "_socket", conn.fileno)()
    return fd


def is_hung_up(conn: Any) -> bool:
    """Whether the other end of a connection is closed."""
    return _is_hung_up(_poll_for_hangup(conn))


def _poll_for_hangup(conn: Any) -> Any:
    poll = select.poll()
    poll.register(_descriptor(conn), select.POLLRDHUP)
    return poll


def _is_hung_up(poll: Any) -> bool:
    return any(event & _HANGUP for _fd, event in poll.poll(0))


class ClientGone(BaseException):
    """The client that a server thread works for has closed its connection, or died."""


class Session:
    """One client process, as far as the server knows it, with all that it holds.

    It lasts as long as one of its connections. Clients of the standard library do not say which
    process they are: each of their connections is a session to itself, and holds nothing that would
    be given back (a lock taken through one may be released through another).
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.connections = 0
        # Whether the process has said that it goes. If not, it has died.
        self.has_left = False
        self.references: Counter[str] = Counter()
        self._mutex = threading.Lock()
        # The member of this family that holds locks for it, and the numbers of its threads.
        self._member: int | None = None
        self._threads: dict[str, int] = {}

    def member(self) -> int | None:
        """Return the member of this family that stands for the client process.

        None for a client of the standard library: what it holds is the server's.
        """
        if self.name is None:
            return None
        with self._mutex:
            if self._member is None:
                self._member = _phalanx.add_surrogate()
            return self._member

    def number_of(self, thread: str) -> int:
        """Return the number by which a thread of the client is known to locks."""
        with self._mutex:
            if thread not in self._threads:
                self._threads[thread] = _phalanx.new_thread()
            return self._threads[thread]

    def close(self, leave: Callable[[int], object]) -> None:
        """The process is gone; if in good order, `leave` is called with its member first."""
        member, self._member = self._member, None
        if member is None:
            return
        if self.has_left:
            leave(member)
        _phalanx.remove_surrogate(member)


class Client:
    """The thread of a client process that a server thread works for.

    Server threads that work for nobody have one, too, without a connection.
    """

    def __init__(
        self, connection: Any = None, session: Session | None = None, thread: str = ""
    ) -> None:
        self.connection = connection
        self.session = session or Session()
        # The number of what owns a reentrant lock: the thread in the client. It may reach the
        # server by another connection than before.
        self._thread = self.session.number_of(thread)
        # Whether the client is of the server's family, and connected by a pipe.
        self.is_member = False
        self._kept: list[Any] = []
        self._hangup: Any = None

    def keep(self, shared: Any) -> None:
        """Keep something shared that is being sent to the client until its next request.

        By then the client refers to the object itself.
        """
        if self.connection is not None:
            self._kept.append(shared)

    def let_go(self) -> None:
        """Keep nothing of what was sent any longer."""
        if self._kept:
            self._kept.clear()

    def perform(self, obj: Any, method: str, args: Any, kwds: Any) -> Any:
        """Call a method of a lock or the like in the name of the client."""
        if method == "get" and self.is_gone():
            raise ClientGone  # before anything is taken
        result = _phalanx.acting(
            self.session.member(), self._thread, getattr(obj, method), args, kwds
        )
        if method in ("acquire", "wait") and result is True and self.is_gone():
            _phalanx.acting(
                self.session.member(), self._thread, obj._take_back, (method,), _NO_KWDS
            )
            raise ClientGone
        return result

    def is_gone(self) -> bool:
        """Whether the client has closed its connection, or died."""
        if self.connection is None:
            return False
        if self._hangup is None:
            self._hangup = _poll_for_hangup(self.connection)
        return _is_hung_up(self._hangup)


_served = threading.local()


def serve(client: Client | None) -> None:
    """Make the current thread work for `client` from now on."""
    _served.client = client


def current() -> Client:
    """Return whom the current thread works for."""
    client: Client | None = getattr(_served, "client", None)
    if client is None:
        client = _served.client = Client()
    return client


def check_client() -> None:
    """Raise `ClientGone` if the current thread works for nobody any more."""
    if current().is_gone():
        raise ClientGone


def time_limit(timeout: float | None) -> float | None:
    """Return when a wait that begins now has to end: None for never."""
    return None if timeout is None else time.monotonic() + timeout
