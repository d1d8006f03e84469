"""A manager's queues."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import queues
from .clients import time_limit
from .primitive import Primitive

__all__ = ["Queue"]


class Kept:
    """Stands in a queue for an item that the server keeps."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self.number,)


class Queue(Primitive):
    """A `queue.Queue` in the arena.

    An item that is, or has in it, a proxy or another shared object must be kept alive until
    somebody has taken it. So it is the server that has it; in the queue there is its number.

    What a client had taken and not reported when it was killed counts as done.
    """

    _kind = "Queue"
    _methods = frozenset(
        {
            "empty",
            "full",
            "get",
            "get_nowait",
            "join",
            "put",
            "put_nowait",
            "qsize",
            "task_done",
        }
    )
    # In the server: the items it keeps, by number.
    _kept: dict[int, Any] | None = None

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize, False, True)
        self.maxsize = maxsize
        self._kept = {}
        self._numbers = itertools.count()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        limit = _limit(block, timeout)
        while True:
            try:
                self._put_now(item)
                return
            except queue.Full:
                if not block or not self._wait_for(self._native._poll_room, limit):
                    raise

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        limit = _limit(block, timeout)
        while True:
            try:
                item = self._native.get_nowait()
            except queue.Empty:
                if not block or not self._wait_for(self._native._poll_item, limit):
                    raise
                continue
            return self._fetch(item.number) if type(item) is Kept else item

    def put_nowait(self, item: Any) -> None:
        self.put(item, False)

    def get_nowait(self) -> Any:
        return self.get(False)

    def qsize(self) -> int:
        size: int = self._native.qsize()
        return size

    def empty(self) -> bool:
        return self.qsize() == 0

    def full(self) -> bool:
        full: bool = self._native.full()
        return full

    def task_done(self) -> None:
        self._native._task_done()

    def join(self) -> None:
        self._wait_for(self._native._join, None)

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse new items, and raise in who waits; with `immediate`, drop what is there."""
        self._native._shutdown(immediate)
        if immediate and self._kept:
            self._kept.clear()

    @property
    def is_shutdown(self) -> bool:
        shut: bool = self._native._is_shutdown
        return shut

    def _put_now(self, item: Any) -> None:
        if self._native._put_alone(item):
            return
        if self._kept is None:
            self._ask()
            return
        number = next(self._numbers)
        self._kept[number] = item
        try:
            self._native._put_alone(Kept(number))
        except BaseException:
            del self._kept[number]
            raise

    def _fetch(self, number: int) -> Any:
        """Return an item that the server keeps, or have it do so."""
        if self._kept is None:
            return self._ask("#FETCH", number)
        try:
            return self._kept.pop(number)
        except KeyError:
            raise queues.ShutDown from None

    def _wait_for(self, poll: Callable[[float], bool], limit: float | None) -> bool:
        """Wait, and look now and then whether the other side is there."""
        slice = 0.05
        while True:
            left = None if limit is None else limit - time.monotonic()
            if left is not None and left <= 0:
                return False
            done = poll(slice if left is None else min(slice, left))
            self._watch()
            if done:
                return True
            slice = min(slice * 2, 1.0)

    def _inherit(self, member: int) -> None:
        self._native._inherit(member)

    def _put_back(self, item: Any) -> None:
        """Put an item, at the end, that was taken for a client that is gone."""
        try:
            try:
                self._put_now(item)
            except queue.Full:
                # Somebody has used its place. Nobody waits for this thread.
                threading.Thread(target=self._put_late, args=(item,), daemon=True).start()
            self._native._task_done()
        except queues.ShutDown:
            pass

    def _put_late(self, item: Any) -> None:
        while True:
            try:
                self._put_now(item)
                return
            except queue.Full:
                self._native._poll_room(1)
            except queues.ShutDown:
                return


def _limit(block: bool, timeout: float | None) -> float | None:
    if block and timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return time_limit(timeout)
