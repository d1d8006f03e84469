"""ctypes objects in shared memory, bare or with a lock.

Reading or writing a `Value` or an element of an `Array` of numbers under its lock is one native
call; everything else goes through ctypes.
"""

from __future__ import annotations

import ctypes
import sys
import weakref

from . import _phalanx
from .heap import BufferWrapper

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from .context import BaseContext

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

typecode_to_type: dict[Any, Any] = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}

# The types that the native classes read and write themselves, as kind and size. Exactly these:
# subclasses of them, and types of the other byte order, mean something else.
_SCALARS: dict[Any, str] = {
    **{typecode_to_type[c]: f"i{ctypes.sizeof(typecode_to_type[c])}" for c in "bhilq"},
    **{typecode_to_type[c]: f"u{ctypes.sizeof(typecode_to_type[c])}" for c in "BHILQ"},
    ctypes.c_float: "f4",
    ctypes.c_double: "f8",
}


def _type_of(typecode_or_type: Any) -> Any:
    return typecode_to_type.get(typecode_or_type, typecode_or_type)


def _new_value(type_: Any) -> Any:
    return rebuild_ctype(type_, BufferWrapper(ctypes.sizeof(type_)), None)


def RawValue(typecode_or_type: Any, *args: Any) -> Any:  # noqa: N802
    """A ctypes object in shared memory, without a lock. Zeroed unless `args` initialize it."""
    obj = _new_value(_type_of(typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:  # noqa: N802
    """A ctypes array in shared memory, without a lock: of a size, zeroed, or from a sequence."""
    type_ = _type_of(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    result = _new_value(type_ * len(size_or_initializer))
    result.__init__(*size_or_initializer)
    return result


def _lock_for(lock: Any, ctx: BaseContext | None) -> Any:
    if lock is True or lock is None:
        return _context(ctx).RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(
            f"{lock!r} has no method 'acquire'; lock must be True, False, None or a lock"
        )
    return lock


def _context(ctx: BaseContext | None) -> BaseContext:
    if ctx is None:
        from . import context

        ctx = context._default_context.get_context()
    return ctx


def Value(  # noqa: N802
    typecode_or_type: Any, *args: Any, lock: Any = True, ctx: BaseContext | None = None
) -> Any:
    """A ctypes object in shared memory with a lock (an RLock, or the one given).

    With `lock=False` it is a `RawValue`. A single access to `value` is made under the lock, but
    ``v.value += 1`` is two of them: hold `get_lock()` around it.
    """
    obj = RawValue(typecode_or_type, *args)
    if lock is False:
        return obj
    return synchronized(obj, _lock_for(lock, ctx), ctx)


def Array(  # noqa: N802
    typecode_or_type: Any,
    size_or_initializer: Any,
    *,
    lock: Any = True,
    ctx: BaseContext | None = None,
) -> Any:
    """A ctypes array in shared memory with a lock (an RLock, or the one given).

    With `lock=False` it is a `RawArray`.
    """
    obj = RawArray(typecode_or_type, size_or_initializer)
    if lock is False:
        return obj
    return synchronized(obj, _lock_for(lock, ctx), ctx)


def copy(obj: Any) -> Any:
    """A copy of a ctypes object, in shared memory."""
    new = _new_value(type(obj))
    ctypes.pointer(new)[0] = obj
    return new


def synchronized(obj: Any, lock: Any = None, ctx: BaseContext | None = None) -> Any:
    """A wrapper of a ctypes object that accesses it under `lock`, by default a new RLock."""
    assert not isinstance(obj, SynchronizedBase), "the object is synchronized already"
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        string = obj._type_ is ctypes.c_char
        return (SynchronizedString if string else SynchronizedArray)(obj, lock, ctx)
    return _class_for(type(obj))(obj, lock, ctx)


_classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def _class_for(cls: Any) -> Any:
    """The wrapper class for a ctypes structure: with a property for each of its fields."""
    found = _classes.get(cls)
    if found is None:
        fields = {field[0]: _property(field[0]) for field in cls._fields_}
        found = _classes[cls] = type(f"Synchronized{cls.__name__}", (SynchronizedBase,), fields)
    return found


def _property(name: str) -> property:
    """An attribute of the wrapped object, accessed under the lock."""

    def get(self: Any) -> Any:
        with self:
            return getattr(self.get_obj(), name)

    def put(self: Any, value: Any) -> None:
        with self:
            setattr(self.get_obj(), name, value)

    return property(get, put)


# The types whose objects lie in shared memory. Programs that make a Value may never pickle one: the
# pickler is not loaded for them, and takes these over when it is.
_types: set[Any] = set()


def _register(type_: Any) -> None:
    if type_ in _types:
        return
    _types.add(type_)
    reduction = sys.modules.get(f"{__package__}.reduction")
    if pickler := getattr(reduction, "ForkingPickler", None):
        pickler.register(type_, reduce_ctype)


def reduce_ctype(obj: Any) -> Any:
    """How a ctypes object in shared memory is pickled: by the memory's handle."""
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, obj._wrapper, obj._length_)  # type: ignore[attr-defined]
    return rebuild_ctype, (type(obj), obj._wrapper, None)


def rebuild_ctype(type_: Any, wrapper: BufferWrapper, length: int | None) -> Any:
    """The ctypes object (of `length`: array) at the beginning of `wrapper`'s memory."""
    if length is not None:
        type_ = type_ * length
    _register(type_)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


def _rebuild_synchronized(type_: Any, wrapper: BufferWrapper, length: int | None, lock: Any) -> Any:
    return synchronized(rebuild_ctype(type_, wrapper, length), lock)


class SynchronizedBase(_phalanx.SynchronizedBase):
    """A ctypes object and its lock."""

    def __init__(self, obj: Any, lock: Any = None, ctx: BaseContext | None = None) -> None:
        if not lock:
            lock = _context(ctx).RLock()
        block, code, length = _place_of(obj)
        self._create(obj, lock, block, code, length)

    def __reduce__(self) -> Any:
        if hasattr(self._obj, "_wrapper"):
            # Not left to the pickler: one that is not ours would pickle the values.
            return _rebuild_synchronized, (*reduce_ctype(self._obj)[1], self._lock)
        return synchronized, (self._obj, self._lock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


def _place_of(obj: Any) -> tuple[Any, str, int]:
    """The shared memory that an object fills, if it is a scalar or an array that the native
    classes can access themselves: block, code and length."""
    wrapper = getattr(obj, "_wrapper", None)
    array = isinstance(obj, ctypes.Array)
    code = _SCALARS.get(obj._type_ if array else type(obj))
    if code is None or not isinstance(wrapper, BufferWrapper):
        return None, "", 0
    return wrapper._block, code, len(obj) if array else 1


class Synchronized(_phalanx.Synchronized, SynchronizedBase):
    """A scalar and its lock."""


class SynchronizedArray(_phalanx.SynchronizedArray, SynchronizedBase):
    """An array and its lock."""


class SynchronizedString(SynchronizedArray):
    """An array of characters and its lock."""

    value = _property("value")
    raw = _property("raw")
