"""What else lives in a manager's server: queues, counters, plain values."""

from __future__ import annotations

import array
import heapq
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from .clients import Client, Session, Waiter, current, time_limit

__all__ = ["Array", "ManagedCounter", "Namespace", "Queue", "Value", "unget"]


class Line:
    """A line of waiters, under a mutex that is only held for moments."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._line: deque[Waiter] = deque()

    def _wait(
        self, waiter: Waiter, limit: float | None, refuse: Callable[[Waiter], object]
    ) -> bool:
        """Wait in the line; return whether it was worth it.

        Should the client be gone when its turn has come, `refuse` is called under the mutex to give
        back what it was given.
        """
        try:
            if waiter.sleep(limit):
                return True
        except BaseException:
            with self._mutex:
                if waiter.granted:
                    refuse(waiter)
                else:
                    self._line.remove(waiter)
            raise
        with self._mutex:
            if not waiter.granted:
                self._line.remove(waiter)
            return waiter.granted


class Queue(queue.Queue):  # type: ignore[type-arg]
    """A `queue.Queue` whose items go to clients that live, in the order in which they asked.

    What a client had taken and not reported when it died counts as done.
    """

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._getters = Line()
        self._putters = Line()
        self._joiners = Line()
        self.is_shutdown = False
        # How many items each client has taken and not reported.
        self._hands: Counter[Session] = Counter()
        # One mutex for all: that of the base class, whose other methods take it.
        for line in (self._getters, self._putters, self._joiners):
            line._mutex = self.mutex

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        limit = _limit(block, timeout)
        with self.mutex:
            if self.is_shutdown:
                raise _shut_down()
            if not self._is_full():
                self._admit(item)
                return
            if not block:
                raise queue.Full
            waiter = Waiter(current(), item)
            self._putters._line.append(waiter)
        # An item that was admitted is in the queue, whatever has become of who put it.
        if not self._putters._wait(waiter, limit, lambda _waiter: None):
            raise queue.Full
        if self.is_shutdown and waiter.item is _shut_down:
            raise _shut_down()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        limit = _limit(block, timeout)
        with self.mutex:
            if self._qsize():
                item = self._get()
                self._hand_out(current())
                self._let_in()
                return item
            if self.is_shutdown:
                raise _shut_down()
            if not block:
                raise queue.Empty
            waiter = Waiter(current())
            self._getters._line.append(waiter)
        if not self._getters._wait(waiter, limit, self._refuse):
            raise queue.Empty
        if waiter.item is _shut_down:
            raise _shut_down()
        return waiter.item

    def task_done(self) -> None:
        with self.mutex:
            if self.unfinished_tasks <= 0:
                raise ValueError("task_done() called too many times")
            self._take_from(current().session)
            self.unfinished_tasks -= 1
            self._let_joiners_go()

    def join(self) -> None:
        with self.mutex:
            if not self.unfinished_tasks:
                return
            waiter = Waiter(current())
            self._joiners._line.append(waiter)
        self._joiners._wait(waiter, None, lambda _waiter: None)

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse new items, and raise in who waits; with `immediate`, drop what is there."""
        with self.mutex:
            self.is_shutdown = True
            if immediate:
                while self._qsize():
                    self._get()
                    self.unfinished_tasks = max(0, self.unfinished_tasks - 1)
                self._let_joiners_go()
            for line in (self._getters, self._putters):
                while line._line:
                    waiter = line._line.popleft()
                    waiter.item = _shut_down
                    waiter.wake()

    # All below is called under the mutex.

    def _is_full(self) -> bool:
        return 0 < self.maxsize <= self._qsize()

    def _admit(self, item: Any) -> None:
        self.unfinished_tasks += 1
        if not self._serve(item):
            self._put(item)

    def _let_in(self) -> None:
        while self._putters._line and not self._is_full():
            waiter = self._putters._line.popleft()
            if not waiter.client.is_gone():
                self._admit(waiter.item)
            waiter.wake()

    def _let_joiners_go(self) -> None:
        while not self.unfinished_tasks and self._joiners._line:
            self._joiners._line.popleft().wake()

    def _return(self, item: Any) -> None:
        """Take back an item that could not be delivered: it is for the next who asks."""
        if item is _shut_down:
            return
        if not self._serve(item):
            self.queue.appendleft(item)

    def _serve(self, item: Any) -> bool:
        """Give an item to the first in line who is still there, if anybody is."""
        while self._getters._line:
            waiter = self._getters._line.popleft()
            if waiter.client.is_gone():
                waiter.item = _shut_down
                waiter.wake()
                continue
            waiter.item = item
            self._hand_out(waiter.client)
            waiter.wake()
            return True
        return False

    def _refuse(self, waiter: Waiter) -> None:
        if waiter.item is not _shut_down:
            self._take_from(waiter.client.session)
        self._return(waiter.item)

    def _hand_out(self, client: Client) -> None:
        session = client.session
        if session.name is None:
            return
        if session not in self._hands:
            for gone in [one for one in self._hands if not one.connections]:
                del self._hands[gone]  # in good order: somebody else may have its items
        self._hands[session] += 1
        session.hold(self)

    def _take_from(self, session: Session) -> None:
        """An item is in the hands of `session` no more, or, if none was, in those of another."""
        if session not in self._hands:
            session = next(iter(self._hands), session)
        if session in self._hands:
            session.let_go(self)
            self._hands[session] -= 1
            if not self._hands[session]:
                del self._hands[session]

    # What follows is called without it.

    def _unget(self, item: Any) -> None:
        with self.mutex:
            self._take_from(current().session)
            self._return(item)

    def _abandon(self, session: Session) -> None:
        with self.mutex:
            lost = self._hands.pop(session, 0)
            self.unfinished_tasks = max(0, self.unfinished_tasks - lost)
            self._let_joiners_go()


def _limit(block: bool, timeout: float | None) -> float | None:
    if block and timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return time_limit(timeout)


def _shut_down() -> Exception:
    from ..queues import ShutDown

    return ShutDown()


def unget(obj: Any, item: Any) -> None:
    """Put back what `get` gave: the client that asked for it is gone."""
    if isinstance(obj, Queue):
        obj._unget(item)
    elif isinstance(obj, queue.Queue):
        with obj.mutex:
            if isinstance(obj.queue, deque):
                obj.queue.appendleft(item)
            elif isinstance(obj, queue.PriorityQueue):
                heapq.heappush(obj.queue, item)
            else:
                obj.queue.append(item)
            obj.not_empty.notify()


class Namespace:
    """An object whose attributes are what it was made with and what is set later."""

    def __init__(self, /, **kwds: Any) -> None:
        self.__dict__.update(kwds)

    def __repr__(self) -> str:
        shown = sorted(f"{k}={v!r}" for k, v in self.__dict__.items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(shown)})"


class Value:
    """A value that can be replaced; the typecode is only remembered."""

    def __init__(self, typecode: str, value: Any, lock: bool = True) -> None:
        self._typecode = typecode
        self._value = value

    def get(self) -> Any:
        return self._value

    def set(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._typecode!r}, {self._value!r})"

    value = property(get, set)


def Array(typecode: str, sequence: Iterable[Any], lock: bool = True) -> array.array[Any]:
    """Return an `array.array`."""
    return array.array(typecode, sequence)


class ManagedCounter(Counter[Any]):
    """A `Counter` whose operators in place do not send it all back to who uses them."""

    def _in_place(self, operator: str, other: Counter[Any]) -> None:
        """Do `+=`, `-=`, `|=` or `&=`, by the method's name."""
        getattr(super(), operator)(other)

    def __reduce__(self) -> Any:
        return Counter, (dict(self),)

    def __repr__(self) -> str:
        return repr(Counter(self))
