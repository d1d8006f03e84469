"""What else lives in a manager's server: counters, plain values."""

from __future__ import annotations

import array
import heapq
import queue
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from .clients import current
from .queues import Queue

__all__ = ["Array", "ManagedCounter", "Namespace", "Value", "unget"]


def unget(obj: Any, item: Any) -> None:
    """Put back what `get` gave: the client that asked for it is gone."""
    if isinstance(obj, Queue):
        current().perform(obj, "_put_back", (item,), {})
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
