"""Queues between processes.

An item is in the queue when `put()` returns: there is no feeder thread. So an object that cannot be
pickled raises in the caller, an exiting process leaves nothing unsent, and `qsize()` and `empty()`
are exact. A process killed at any moment leaves the queue working for all others.
"""

from __future__ import annotations

from queue import Empty, Full
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import _phalanx

if TYPE_CHECKING:
    from .context import BaseContext

__all__ = ["Queue", "SimpleQueue", "JoinableQueue"]

T = TypeVar("T")

# Names that subclasses of the standard classes take from here.
_ = (Empty, Full)


def _rebuild(cls: type[_Base[Any]], family: int, handle: int) -> _Base[Any]:
    queue = cls.__new__(cls)
    queue._attach(family, handle)
    return queue


class _Base(_phalanx.Queue, Generic[T]):
    """What all queues have in common."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "_ctx"}
        return _rebuild, (type(self), *self._handle_for_pickle()), state or None

    def _unpicklable(self, error: BaseException, obj: Any) -> None:
        raise error


class Queue(_Base[T]):
    """A first-in first-out queue for any number of processes.

    `maxsize` of 0 or less: any number of items, and `put()` never blocks.
    """

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext) -> None:
        self._create(maxsize)

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
        """Blocks until every item ever put has been reported."""
        self._join()


class SimpleQueue(_Base[T]):
    """A queue with nothing but `put`, `get`, `empty` and `close`."""

    def __init__(self, *, ctx: BaseContext) -> None:
        self._create(0)

    def empty(self) -> bool:
        """True if there is nothing in the queue; OSError after `close()`."""
        if self._closed:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()
