"""`phalanx.connection` for threads: objects go through queues, as they are."""

from __future__ import annotations

import time
from queue import Queue
from typing import Any

__all__ = ["Client", "Listener", "Pipe"]

families = [None]


class Listener:
    """Accepts connections of threads that know its address, which is a queue."""

    def __init__(self, address: Any = None, family: None = None, backlog: int = 1) -> None:
        self._backlog_queue: Queue[tuple[Queue[Any], Queue[Any]]] | None = Queue(backlog)

    def accept(self) -> Connection:
        if self._backlog_queue is None:
            raise OSError("listener is closed")
        return Connection(*self._backlog_queue.get())

    def close(self) -> None:
        self._backlog_queue = None

    @property
    def address(self) -> Queue[tuple[Queue[Any], Queue[Any]]] | None:
        return self._backlog_queue

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def Client(address: Queue[tuple[Queue[Any], Queue[Any]]]) -> Connection:
    """Return a connection to the listener whose `address` this is."""
    to_us: Queue[Any] = Queue()
    from_us: Queue[Any] = Queue()
    address.put((from_us, to_us))
    return Connection(to_us, from_us)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Return two connected `Connection` objects; both can always send and receive."""
    a: Queue[Any] = Queue()
    b: Queue[Any] = Queue()
    return Connection(a, b), Connection(b, a)


class Connection:
    """One end of a pipe of threads."""

    def __init__(self, _in: Queue[Any], _out: Queue[Any]) -> None:
        self._in = _in
        self._out = _out
        self.send = self.send_bytes = _out.put
        self.recv = self.recv_bytes = _in.get

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether something can be received within `timeout` seconds (None: for ever)."""
        limit = None if timeout is None else time.monotonic() + timeout
        with self._in.not_empty:
            while not self._in._qsize():
                left = None if limit is None else limit - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._in.not_empty.wait(left)
            return True

    def close(self) -> None:
        """Do nothing: queues have no end."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
