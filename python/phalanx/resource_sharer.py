"""Descriptors that are pickled outside of a process's start.

The pickle holds an address and a key. A thread of the sending process, started by the first such
pickle, gives the descriptor to whoever connects there, proves to be of the family and names the
key.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from . import process, reduction, util

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["stop", "DupFd"]


class DupFd:
    """A duplicate of a descriptor that can be pickled, once for one receiver."""

    def __init__(self, fd: int) -> None:
        duplicate = os.dup(fd)

        def send(conn: Any, pid: int) -> None:
            reduction.send_handle(conn, duplicate, pid)

        def close() -> None:
            os.close(duplicate)

        self._id = _resource_sharer.register(send, close)

    def detach(self) -> int:
        """The descriptor, in the process that unpickled this. To be called once."""
        with _resource_sharer.get_connection(self._id) as conn:
            return reduction.recv_handle(conn)


class _ResourceSharer:
    """What is waiting to be fetched, and the thread that gives it out."""

    def __init__(self) -> None:
        self._key = 0
        self._cache: dict[int, tuple[Callable[[Any, int], None], Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._listener: Any = None
        self._address: Any = None
        self._thread: threading.Thread | None = None
        util.register_after_fork(self, _ResourceSharer._afterfork)

    def register(
        self, send: Callable[[Any, int], None], close: Callable[[], None]
    ) -> tuple[Any, int]:
        """Offer a resource; gives what `get_connection` asks for."""
        with self._lock:
            if self._address is None:
                self._start()
            self._key += 1
            self._cache[self._key] = (send, close)
            return self._address, self._key

    @staticmethod
    def get_connection(ident: tuple[Any, int]) -> Any:
        """The connection over which the resource comes."""
        from .connection import Client

        address, key = ident
        conn = Client(address, authkey=process.current_process().authkey)
        conn.send((key, os.getpid()))
        return conn

    def stop(self, timeout: float | None = None) -> None:
        """End the thread and drop what nobody has fetched."""
        from .connection import Client

        with self._lock:
            if self._address is None or self._thread is None:
                return
            conn = Client(self._address, authkey=process.current_process().authkey)
            conn.send(None)
            conn.close()
            self._thread.join(timeout)
            if self._thread.is_alive():
                util.sub_warning("the resource sharer's thread did not stop when asked")
            self._forget()

    def _forget(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._listener = self._address = self._thread = None
        for _, close in self._cache.values():
            close()
        self._cache.clear()

    def _afterfork(self) -> None:
        # The thread has stayed in the parent, and so have those who will ask for these.
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]
        self._forget()

    def _start(self) -> None:
        from .connection import Listener, abstract_address

        util.debug("starting listener and thread for sending handles")
        self._listener = Listener(
            abstract_address(), authkey=process.current_process().authkey, backlog=128
        )
        self._address = self._listener.address
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            try:
                with self._listener.accept() as conn:
                    message = conn.recv()
                    if message is None:
                        break
                    key, destination_pid = message
                    send, close = self._cache.pop(key)
                    try:
                        send(conn, destination_pid)
                    finally:
                        close()
            except BaseException:
                if not util.is_exiting():
                    sys.excepthook(*sys.exc_info())


_resource_sharer = _ResourceSharer()
stop = _resource_sharer.stop
