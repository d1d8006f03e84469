"""The proxies of the types that a `SyncManager` makes."""

from __future__ import annotations

import collections
import collections.abc
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import GenericAlias
from typing import Any

from .proxies import BaseProxy, MakeProxyType, plain

__all__ = [
    "AcquirerProxy",
    "ArrayProxy",
    "BarrierProxy",
    "BaseListProxy",
    "BasePoolProxy",
    "ConditionProxy",
    "CounterProxy",
    "DefaultDictProxy",
    "DequeProxy",
    "DictProxy",
    "EventProxy",
    "IteratorProxy",
    "ListProxy",
    "NamespaceProxy",
    "OrderedDictProxy",
    "PoolProxy",
    "SetProxy",
    "ValueProxy",
]


def _computed(name: str) -> Any:
    """Make an operator, by its name in `operator`, that is applied to a copy of the object."""
    function = getattr(operator, name)

    def method(self: BaseProxy, other: Any) -> Any:
        return function(self._getvalue(), plain(other))

    return method


def _reflected(name: str) -> Any:
    """As `_computed`, with the copy on the right."""
    function = getattr(operator, name)

    def method(self: BaseProxy, other: Any) -> Any:
        return function(other, self._getvalue())

    return method


def _in_place(method: str, kind: type, *leading: Any) -> Any:
    """Make an operator in place: the object's method does it, in one step."""

    def operate(self: BaseProxy, other: Any) -> Any:
        other = plain(other)
        if not isinstance(other, kind):
            return NotImplemented
        self._callmethod(method, (*leading, other))
        return self

    return operate


class IteratorProxy(BaseProxy):
    """An iterator or generator in the server."""

    _exposed_ = ("__next__", "send", "throw", "close")

    def __iter__(self) -> IteratorProxy:
        return self

    def __next__(self, *args: Any) -> Any:
        return self._callmethod("__next__", args)

    def send(self, *args: Any) -> Any:
        return self._callmethod("send", args)

    def throw(self, *args: Any) -> Any:
        return self._callmethod("throw", args)

    def close(self, *args: Any) -> Any:
        return self._callmethod("close", args)


# Locks and their kin --------------------------------------------------------------------------


class AcquirerProxy(BaseProxy):
    """A lock or semaphore. It comes back when the process that holds it is gone."""

    _exposed_: tuple[str, ...] = ("acquire", "release", "locked")

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Any:
        args = (blocking,) if timeout is None else (blocking, timeout)
        return self._callmethod("acquire", args)

    def release(self) -> Any:
        return self._callmethod("release")

    def locked(self) -> Any:
        return self._callmethod("locked")

    def __enter__(self) -> Any:
        return self._callmethod("acquire")

    def __exit__(self, *exc_info: object) -> None:
        self._callmethod("release")


class ConditionProxy(AcquirerProxy):
    _exposed_ = ("acquire", "release", "locked", "wait", "notify", "notify_all")

    def wait(self, timeout: float | None = None) -> Any:
        return self._callmethod("wait", (timeout,))

    def notify(self, n: int = 1) -> Any:
        return self._callmethod("notify", (n,))

    def notify_all(self) -> Any:
        return self._callmethod("notify_all")

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until `predicate`, which is called here, returns something true."""
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            result = predicate()
            left = None if limit is None else limit - time.monotonic()
            if result or (left is not None and left <= 0):
                return result
            self.wait(left)


class EventProxy(BaseProxy):
    _exposed_ = ("is_set", "set", "clear", "wait")

    def is_set(self) -> Any:
        return self._callmethod("is_set")

    def set(self) -> Any:
        return self._callmethod("set")

    def clear(self) -> Any:
        return self._callmethod("clear")

    def wait(self, timeout: float | None = None) -> Any:
        return self._callmethod("wait", (timeout,))


class BarrierProxy(BaseProxy):
    _exposed_ = ("__getattribute__", "wait", "abort", "reset")

    def wait(self, timeout: float | None = None) -> Any:
        return self._callmethod("wait", (timeout,))

    def abort(self) -> Any:
        return self._callmethod("abort")

    def reset(self) -> Any:
        return self._callmethod("reset")

    def _get(self, name: str) -> Any:
        if self._direct is not None:
            return getattr(self._direct, name)
        return self._callmethod("__getattribute__", (name,))

    @property
    def parties(self) -> Any:
        return self._get("parties")

    @property
    def n_waiting(self) -> Any:
        return self._get("n_waiting")

    @property
    def broken(self) -> Any:
        return self._get("broken")


# Values ---------------------------------------------------------------------------------------


class NamespaceProxy(BaseProxy):
    """Attributes that do not begin with an underscore are those of the object."""

    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__")

    def __getattr__(self, key: str) -> Any:
        if key[0] == "_":
            return object.__getattribute__(self, key)
        return object.__getattribute__(self, "_callmethod")("__getattribute__", (key,))

    def __setattr__(self, key: str, value: Any) -> None:
        if key[0] == "_":
            object.__setattr__(self, key, value)
        else:
            object.__getattribute__(self, "_callmethod")("__setattr__", (key, value))

    def __delattr__(self, key: str) -> None:
        if key[0] == "_":
            object.__delattr__(self, key)
        else:
            object.__getattribute__(self, "_callmethod")("__delattr__", (key,))


class ValueProxy(BaseProxy):
    _exposed_ = ("get", "set")

    def get(self) -> Any:
        return self._callmethod("get")

    def set(self, value: Any) -> Any:
        return self._callmethod("set", (value,))

    value = property(get, set)

    __class_getitem__: Any = classmethod(GenericAlias)


ArrayProxy: Any = MakeProxyType("ArrayProxy", ("__len__", "__getitem__", "__setitem__"))


# Lists ----------------------------------------------------------------------------------------

BaseListProxy: Any = MakeProxyType(
    "BaseListProxy",
    (
        "__add__",
        "__contains__",
        "__delitem__",
        "__getitem__",
        "__imul__",
        "__len__",
        "__mul__",
        "__reversed__",
        "__rmul__",
        "__setitem__",
        "append",
        "clear",
        "copy",
        "count",
        "extend",
        "index",
        "insert",
        "pop",
        "remove",
        "reverse",
        "sort",
    ),
)
collections.abc.MutableSequence.register(BaseListProxy)


class ListProxy(BaseListProxy):  # type: ignore[misc]
    """A list. Iterating asks for each item; `proxy[:]` gets all at once."""

    def __iadd__(self, value: Iterable[Any]) -> ListProxy:
        self._callmethod("extend", (_listed(value),))
        return self

    def __imul__(self, value: int) -> ListProxy:
        self._callmethod("__imul__", (value,))
        return self

    def extend(self, value: Iterable[Any]) -> None:
        self._callmethod("extend", (_listed(value),))

    def __reversed__(self) -> Iterator[Any]:
        return iter(self[::-1])

    # By slices: a server of the standard library may not have these methods.

    def clear(self) -> None:
        self._callmethod("__delitem__", (slice(None),))

    def copy(self) -> list[Any]:
        copy: list[Any] = self._callmethod("__getitem__", (slice(None),))
        return copy

    __class_getitem__: Any = classmethod(GenericAlias)


class DequeProxy(
    MakeProxyType(  # type: ignore[misc]
        "DequeProxy",
        (
            "__add__",
            "__contains__",
            "__delitem__",
            "__getattribute__",
            "__getitem__",
            "__len__",
            "__mul__",
            "__setitem__",
            "append",
            "appendleft",
            "clear",
            "copy",
            "count",
            "extend",
            "extendleft",
            "index",
            "insert",
            "pop",
            "popleft",
            "remove",
            "reverse",
            "rotate",
        ),
    )
):
    """A `collections.deque`."""

    # The base would forward it, and every look at the proxy would be one at the object.
    __getattribute__ = object.__getattribute__

    @property
    def maxlen(self) -> int | None:
        maxlen: int | None = self._callmethod("__getattribute__", ("maxlen",))
        return maxlen

    def extend(self, value: Iterable[Any]) -> None:
        self._callmethod("extend", (_listed(value),))

    def extendleft(self, value: Iterable[Any]) -> None:
        self._callmethod("extendleft", (_listed(value),))

    def __iadd__(self, value: Iterable[Any]) -> DequeProxy:
        self.extend(value)
        return self

    def __iter__(self) -> Iterator[Any]:
        yield from self._getvalue()

    def __reversed__(self) -> Iterator[Any]:
        yield from reversed(self._getvalue())

    __eq__ = _computed("eq")

    __class_getitem__: Any = classmethod(GenericAlias)


def _listed(value: Iterable[Any]) -> Any:
    """Return what can be sent of an iterable: generators cannot."""
    value = plain(value)
    return value if isinstance(value, (list, tuple)) else list(value)


# Dictionaries ---------------------------------------------------------------------------------

_DICT_METHODS = (
    "__contains__",
    "__delitem__",
    "__getitem__",
    "__ior__",
    "__iter__",
    "__len__",
    "__or__",
    "__reversed__",
    "__ror__",
    "__setitem__",
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
)

_BaseDictProxy: Any = MakeProxyType("DictProxy", _DICT_METHODS)
_BaseDictProxy._method_to_typeid_ = {"__iter__": "Iterator"}
collections.abc.MutableMapping.register(_BaseDictProxy)


def _pairs(value: Any) -> Any:
    """Return what can be sent of the first argument of `dict.update`."""
    value = plain(value)
    if isinstance(value, (Mapping, list, tuple)):
        return value
    return dict(value)


class DictProxy(_BaseDictProxy):  # type: ignore[misc]
    """A dict. `proxy.copy()` gets all at once."""

    def update(self, *args: Any, **kwds: Any) -> None:
        self._callmethod("update", tuple(map(_pairs, args)), kwds)

    def __reversed__(self) -> Iterator[Any]:
        yield from reversed(self.keys())

    def __or__(self, other: Any) -> Any:
        other = plain(other)
        return self._getvalue() | other if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Any) -> Any:
        return other | self._getvalue() if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    __class_getitem__: Any = classmethod(GenericAlias)


class OrderedDictProxy(DictProxy):
    """A `collections.OrderedDict`."""

    _exposed_ = (*_DICT_METHODS, "move_to_end")

    def move_to_end(self, key: Any, last: bool = True) -> None:
        self._callmethod("move_to_end", (key, last))

    __eq__ = _computed("eq")


class DefaultDictProxy(DictProxy):
    """A `collections.defaultdict`, whose factory runs in the server.

    What it makes is got as a copy, so `proxy[key].append(x)` changes nothing; `proxy[key] += [x]`
    does.
    """

    _exposed_ = (*_DICT_METHODS, "__getattribute__")

    @property
    def default_factory(self) -> Any:
        return self._callmethod("__getattribute__", ("default_factory",))

    __eq__ = _computed("eq")


class CounterProxy(DictProxy):
    """A `collections.Counter`.

    `update` and `subtract`, and the operators in place, are done in one step by the server:
    processes that share a counter lose nothing. `proxy[key] += 1` is two steps, and another process
    may come in between.
    """

    _exposed_ = (*_DICT_METHODS, "_in_place", "most_common", "subtract", "total")

    def update(self, iterable: Any = None, /, **kwds: int) -> None:
        """Add counts: those of a mapping, or of the items of an iterable."""
        self._callmethod("update", (_counts(iterable),), kwds)

    def subtract(self, iterable: Any = None, /, **kwds: int) -> None:
        """Subtract counts; what is left may be zero or less."""
        self._callmethod("subtract", (_counts(iterable),), kwds)

    def most_common(self, n: int | None = None) -> list[tuple[Any, int]]:
        """Return the `n` most common items and their counts, all by default."""
        pairs: list[tuple[Any, int]] = self._callmethod("most_common", (n,))
        return pairs

    def total(self) -> int:
        """Return the sum of all counts."""
        total: int = self._callmethod("total")
        return total

    def elements(self) -> Iterator[Any]:
        """Iterate over the items, each as often as it counts."""
        counter: Counter[Any] = self._getvalue()
        return counter.elements()

    def __iter__(self) -> Iterator[Any]:
        yield from self.keys()

    __add__ = _computed("add")

    def __radd__(self, other: Any) -> Any:
        # sum() begins with 0.
        value = self._getvalue()
        return value if isinstance(other, int) and other == 0 else other + value

    __sub__ = _computed("sub")
    __rsub__ = _reflected("sub")
    __or__ = _computed("or_")
    __ror__ = _reflected("or_")
    __and__ = _computed("and_")
    __rand__ = _reflected("and_")

    def __pos__(self) -> Any:
        return +self._getvalue()

    def __neg__(self) -> Any:
        return -self._getvalue()

    __iadd__ = _in_place("_in_place", Counter, "__iadd__")
    __isub__ = _in_place("_in_place", Counter, "__isub__")
    __ior__ = _in_place("_in_place", Counter, "__ior__")
    __iand__ = _in_place("_in_place", Counter, "__iand__")
    __eq__ = _computed("eq")
    __lt__ = _computed("lt")
    __le__ = _computed("le")
    __gt__ = _computed("gt")
    __ge__ = _computed("ge")


def _counts(iterable: Any) -> Any:
    """Return what to send for a counter's `update`: counts, rather than all that was counted."""
    iterable = plain(iterable)
    if iterable is None or isinstance(iterable, Mapping):
        return iterable
    return dict(Counter(iterable))


# Sets -----------------------------------------------------------------------------------------

# The operators are for clients of the standard library; `SetProxy` has its own.
_SET_METHODS = (
    "__and__",
    "__contains__",
    "__ge__",
    "__gt__",
    "__iand__",
    "__ior__",
    "__isub__",
    "__iter__",
    "__ixor__",
    "__le__",
    "__len__",
    "__lt__",
    "__or__",
    "__rand__",
    "__ror__",
    "__rsub__",
    "__rxor__",
    "__sub__",
    "__xor__",
    "add",
    "clear",
    "copy",
    "difference",
    "difference_update",
    "discard",
    "intersection",
    "intersection_update",
    "isdisjoint",
    "issubset",
    "issuperset",
    "pop",
    "remove",
    "symmetric_difference",
    "symmetric_difference_update",
    "union",
    "update",
)
_BaseSetProxy: Any = MakeProxyType("SetProxy", _SET_METHODS)
_BaseSetProxy._method_to_typeid_ = {"__iter__": "Iterator"}


def _of_sets(name: str) -> Callable[..., Any]:
    def method(self: SetProxy, *others: Iterable[Any]) -> Any:
        return self._callmethod(name, tuple(map(_members, others)))

    method.__name__ = method.__qualname__ = name
    return method


def _members(value: Any) -> Any:
    value = plain(value)
    return value if isinstance(value, (set, frozenset)) else list(value)


class SetProxy(_BaseSetProxy):  # type: ignore[misc]
    """A set."""

    difference = _of_sets("difference")
    difference_update = _of_sets("difference_update")
    intersection = _of_sets("intersection")
    intersection_update = _of_sets("intersection_update")
    isdisjoint = _of_sets("isdisjoint")
    issubset = _of_sets("issubset")
    issuperset = _of_sets("issuperset")
    symmetric_difference = _of_sets("symmetric_difference")
    symmetric_difference_update = _of_sets("symmetric_difference_update")
    union = _of_sets("union")
    update = _of_sets("update")

    def __iter__(self) -> Iterator[Any]:
        yield from self._getvalue()

    __and__ = _computed("and_")
    __rand__ = _reflected("and_")
    __or__ = _computed("or_")
    __ror__ = _reflected("or_")
    __sub__ = _computed("sub")
    __rsub__ = _reflected("sub")
    __xor__ = _computed("xor")
    __rxor__ = _reflected("xor")

    __iand__ = _in_place("intersection_update", collections.abc.Set)
    __ior__ = _in_place("update", collections.abc.Set)
    __isub__ = _in_place("difference_update", collections.abc.Set)
    __ixor__ = _in_place("symmetric_difference_update", collections.abc.Set)
    __eq__ = _computed("eq")
    __lt__ = _computed("lt")
    __le__ = _computed("le")
    __gt__ = _computed("gt")
    __ge__ = _computed("ge")

    __class_getitem__: Any = classmethod(GenericAlias)


collections.abc.MutableSet.register(SetProxy)


# Pools ----------------------------------------------------------------------------------------

BasePoolProxy: Any = MakeProxyType(
    "PoolProxy",
    (
        "apply",
        "apply_async",
        "close",
        "imap",
        "imap_unordered",
        "join",
        "map",
        "map_async",
        "starmap",
        "starmap_async",
        "terminate",
    ),
)
BasePoolProxy._method_to_typeid_ = {
    "apply_async": "AsyncResult",
    "map_async": "AsyncResult",
    "starmap_async": "AsyncResult",
    "imap": "Iterator",
    "imap_unordered": "Iterator",
}


class PoolProxy(BasePoolProxy):  # type: ignore[misc]
    """A `Pool` whose workers are children of the server."""

    def __enter__(self) -> PoolProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()
