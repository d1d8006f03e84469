"""Queues between processes.

An item is in the queue when `put()` returns: there is no feeder thread. So an object that cannot be
pickled raises in the caller, an exiting process leaves nothing unsent, and `qsize()` and `empty()`
are exact. A process killed at any moment leaves the queue working for all others.
"""

from __future__ import annotations

from types import GenericAlias

from . import _phalanx

TYPE_CHECKING = False  # `typing` and `queue` take longer to import than all of this
if TYPE_CHECKING:
    from queue import Empty as Empty
    from queue import Full as Full
    from typing import Any, Generic, TypeVar

    class ShutDown(Exception):
        """Raised by `put` and `get` of a queue that was shut down: `queue.ShutDown` itself from
        Python 3.13 on."""

    from .context import BaseContext

    T = TypeVar("T")

    class _Native(_phalanx.Queue, Generic[T]):
        pass

else:
    T = object

    class _Native(_phalanx.Queue):
        __class_getitem__ = classmethod(GenericAlias)


__all__ = ["Queue", "SimpleQueue", "JoinableQueue", "ShutDown"]


_sentinel = object()


def __getattr__(name: str) -> object:
    # Names that subclasses of the standard classes take from here.
    if name in ("Empty", "Full", "ShutDown"):
        import queue

        value = getattr(queue, name, None) or type(
            name,
            (Exception,),
            {"__module__": __name__, "__doc__": "Raised by `put` and `get` after `shutdown()`."},
        )
        return globals().setdefault(name, value)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _rebuild(cls: type[_Base[Any]], family: int, handle: int) -> _Base[Any]:
    queue = cls.__new__(cls)
    queue._attach(family, handle)
    return queue


class _End:
    """A queue as one of the two connections that the standard library's has inside.

    For libraries that poll `queue._reader` or send through `queue._writer`: what goes through them
    and what goes through `put` and `get` are the same items.
    """

    readable: bool
    writable: bool

    def __init__(self, queue: _Base[Any], readable: bool) -> None:
        self._queue = queue
        self.readable = readable
        self.writable = not readable
        self._shut = False

    @property
    def closed(self) -> bool:
        """True once this end, or the queue, was closed by this process."""
        return self._shut or self._queue._closed

    def _check_open(self) -> None:
        if self.closed:
            raise OSError("handle is closed")

    def close(self) -> None:
        """Closes this end only."""
        self._shut = True

    def fileno(self) -> int:
        """A descriptor that is readable while the queue has items."""
        self._check_open()
        return self._queue._fileno()

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is an item within `timeout` seconds (None: wait for ever)."""
        self._check_open()
        return self._queue._poll(timeout)

    def recv(self) -> Any:
        """Takes an item; blocks until there is one."""
        self._check_open()
        return self._queue._take()

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Takes an item as a pickle; blocks until there is one."""
        self._check_open()
        pickled, item = self._queue._get_pickle()
        if pickled is None:
            from .reduction import ForkingPickler

            pickled = bytes(ForkingPickler.dumps(item))
        if maxlength is not None and len(pickled) > maxlength:
            raise OSError("bad message length")
        return pickled

    def send(self, obj: Any) -> None:
        """Puts an item."""
        self._check_open()
        self._queue.put(obj)

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Puts an item that has been pickled already."""
        self._check_open()
        view = memoryview(buf).cast("B")[offset:]
        self._queue._put_pickle(bytes(view if size is None else view[:size]))


class _LazyEnd:
    """An end that is made when it is first asked for; `cached_property` of one import less."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, queue: _Base[Any], owner: object = None) -> _End:
        end = queue.__dict__[self._name] = _End(queue, readable=self._name == "_reader")
        return end


class _Base(_Native[T]):
    """What all queues have in common."""

    _reader = _LazyEnd("_reader")
    _writer = _LazyEnd("_writer")

    def _take(self) -> T:
        item: T = self.get()
        return item

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_fork_ctx:
            from .synchronize import refuse_to_be_spawned

            refuse_to_be_spawned()
        # Attributes of subclasses stay behind, as in the standard library: ProcessPoolExecutor's
        # queue has some that cannot be pickled.
        return _rebuild, (type(self), *self._handle_for_pickle())

    def _unpicklable(self, error: BaseException, obj: Any) -> None:
        raise error


class Queue(_Base[T]):
    """A first-in first-out queue for any number of processes.

    `maxsize` of 0 or less: any number of items, and `put()` never blocks.
    """

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext) -> None:
        self._create(maxsize, ctx.get_start_method() == "fork")

    @staticmethod
    def _on_queue_feeder_error(e: BaseException, obj: Any) -> None:
        """For subclasses: called, if overridden, with an object that cannot be pickled, instead of
        raising from `put()`."""

    def _unpicklable(self, error: BaseException, obj: Any) -> None:
        if self._on_queue_feeder_error is Queue._on_queue_feeder_error:
            raise error
        self._on_queue_feeder_error(error, obj)

    def empty(self) -> bool:
        """True if there is nothing in the queue; OSError after `close()`, if it was ever used."""
        if self._closed and self._used:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()

    def shutdown(self, immediate: bool = False) -> None:
        """Ends the queue for all processes, as `queue.Queue.shutdown` does for threads.

        From now on `put()` raises `ShutDown`, and so does `get()` once the queue is empty; who
        blocks in either, in any process, is woken. With `immediate` the queue is emptied as well:
        what is thrown away counts as done for `join()`. A process killed inside leaves the queue
        open or shut. Does not block.
        """
        self._shutdown(immediate)

    @property
    def is_shutdown(self) -> bool:
        """Whether any process has called `shutdown()`."""
        return self._is_shutdown

    def join_thread(self) -> None:
        """Returns at once, there is no thread; AssertionError before `close()`."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Does nothing: what was put is in the queue already."""


class JoinableQueue(Queue[T]):
    """A queue whose items are reported when they have been worked on."""

    def task_done(self) -> None:
        """Says that one item that was taken has been worked on.

        ValueError if more are reported than were ever put.
        """
        self._task_done()

    def join(self) -> None:
        """Blocks until every item ever put has been reported, or was thrown away by `shutdown`."""
        self._join()


class SimpleQueue(_Base[T]):
    """A queue with nothing but `put`, `get`, `empty` and `close`."""

    def __init__(self, *, ctx: BaseContext) -> None:
        self._create(0, ctx.get_start_method() == "fork")

    def empty(self) -> bool:
        """True if there is nothing in the queue; OSError after `close()`."""
        if self._closed:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()
