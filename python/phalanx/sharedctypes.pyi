"""The types of `sharedctypes`: what is in a `Value` or an `Array` goes by what it is made of.

A wrapped structure has its fields as attributes, which no checker can know: it is `Any`.
"""

import ctypes
from _ctypes import _CData
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, overload

from . import _phalanx
from .context import BaseContext

_C = TypeVar("_C", bound=_CData)
_T = TypeVar("_T")

_Int: TypeAlias = Literal["b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"]
_Float: TypeAlias = Literal["f", "d"]

class _Lock(Protocol):
    def acquire(self) -> Any: ...
    def release(self) -> Any: ...

# What makes an object with a lock of its own, or with this one.
_Locked: TypeAlias = Literal[True] | _Lock | None

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

typecode_to_type: dict[str, type[_CData]]

@overload
def RawValue(typecode_or_type: type[_C], *args: Any) -> _C: ...
@overload
def RawValue(typecode_or_type: _Int, *args: Any) -> ctypes._SimpleCData[int]: ...
@overload
def RawValue(typecode_or_type: _Float, *args: Any) -> ctypes._SimpleCData[float]: ...
@overload
def RawValue(typecode_or_type: Literal["c"], *args: Any) -> ctypes.c_char: ...
@overload
def RawValue(typecode_or_type: Literal["u"], *args: Any) -> ctypes.c_wchar: ...
@overload
def RawValue(typecode_or_type: str, *args: Any) -> Any: ...
@overload
def RawArray(
    typecode_or_type: type[_C], size_or_initializer: int | Sequence[Any]
) -> ctypes.Array[_C]: ...
@overload
def RawArray(
    typecode_or_type: _Int, size_or_initializer: int | Sequence[Any]
) -> ctypes.Array[ctypes._SimpleCData[int]]: ...
@overload
def RawArray(
    typecode_or_type: _Float, size_or_initializer: int | Sequence[Any]
) -> ctypes.Array[ctypes._SimpleCData[float]]: ...
@overload
def RawArray(
    typecode_or_type: Literal["c"], size_or_initializer: int | Sequence[Any]
) -> ctypes.Array[ctypes.c_char]: ...
@overload
def RawArray(
    typecode_or_type: Literal["u"], size_or_initializer: int | Sequence[Any]
) -> ctypes.Array[ctypes.c_wchar]: ...
@overload
def RawArray(typecode_or_type: str, size_or_initializer: int | Sequence[Any]) -> Any: ...
@overload
def Value(
    typecode_or_type: type[ctypes._SimpleCData[_T]],
    *args: Any,
    lock: _Locked = True,
    ctx: BaseContext | None = None,
) -> Synchronized[_T]: ...
@overload
def Value(
    typecode_or_type: _Int, *args: Any, lock: _Locked = True, ctx: BaseContext | None = None
) -> Synchronized[int]: ...
@overload
def Value(
    typecode_or_type: _Float, *args: Any, lock: _Locked = True, ctx: BaseContext | None = None
) -> Synchronized[float]: ...
@overload
def Value(
    typecode_or_type: Literal["c"], *args: Any, lock: _Locked = True, ctx: BaseContext | None = None
) -> Synchronized[bytes]: ...
@overload
def Value(
    typecode_or_type: Literal["u"], *args: Any, lock: _Locked = True, ctx: BaseContext | None = None
) -> Synchronized[str]: ...
@overload
def Value(
    typecode_or_type: _Int, *args: Any, lock: Literal[False], ctx: BaseContext | None = None
) -> ctypes._SimpleCData[int]: ...
@overload
def Value(
    typecode_or_type: _Float, *args: Any, lock: Literal[False], ctx: BaseContext | None = None
) -> ctypes._SimpleCData[float]: ...
@overload
def Value(
    typecode_or_type: type[_C], *args: Any, lock: Literal[False], ctx: BaseContext | None = None
) -> _C: ...
@overload
def Value(
    typecode_or_type: str | type[_CData],
    *args: Any,
    lock: Any = True,
    ctx: BaseContext | None = None,
) -> Any: ...
@overload
def Array(
    typecode_or_type: type[ctypes.c_char] | Literal["c"],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: _Locked = True,
    ctx: BaseContext | None = None,
) -> SynchronizedString: ...
@overload
def Array(
    typecode_or_type: type[ctypes._SimpleCData[_T]],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: _Locked = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[_T]: ...
@overload
def Array(
    typecode_or_type: _Int,
    size_or_initializer: int | Sequence[Any],
    *,
    lock: _Locked = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[int]: ...
@overload
def Array(
    typecode_or_type: _Float,
    size_or_initializer: int | Sequence[Any],
    *,
    lock: _Locked = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[float]: ...
@overload
def Array(
    typecode_or_type: Literal["u"],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: _Locked = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[str]: ...
@overload
def Array(
    typecode_or_type: _Int,
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Literal[False],
    ctx: BaseContext | None = None,
) -> ctypes.Array[ctypes._SimpleCData[int]]: ...
@overload
def Array(
    typecode_or_type: _Float,
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Literal[False],
    ctx: BaseContext | None = None,
) -> ctypes.Array[ctypes._SimpleCData[float]]: ...
@overload
def Array(
    typecode_or_type: type[_C],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Literal[False],
    ctx: BaseContext | None = None,
) -> ctypes.Array[_C]: ...
@overload
def Array(
    typecode_or_type: str | type[_CData],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Any = True,
    ctx: BaseContext | None = None,
) -> Any: ...
def copy(obj: _C) -> _C: ...
@overload
def synchronized(
    obj: ctypes._SimpleCData[_T], lock: _Lock | None = None, ctx: BaseContext | None = None
) -> Synchronized[_T]: ...
@overload
def synchronized(
    obj: ctypes.Array[ctypes.c_char], lock: _Lock | None = None, ctx: BaseContext | None = None
) -> SynchronizedString: ...
@overload
def synchronized(
    obj: ctypes.Array[Any], lock: _Lock | None = None, ctx: BaseContext | None = None
) -> SynchronizedArray[Any]: ...
@overload
def synchronized(obj: _CData, lock: _Lock | None = None, ctx: BaseContext | None = None) -> Any: ...
def reduce_ctype(obj: _CData) -> Any: ...
def rebuild_ctype(type_: Any, wrapper: Any, length: int | None) -> Any: ...

class SynchronizedBase(_phalanx.SynchronizedBase, Generic[_C]):
    def __init__(self, obj: Any, lock: Any = None, ctx: BaseContext | None = None) -> None: ...
    def __reduce__(self) -> Any: ...
    def get_obj(self) -> _C: ...

class Synchronized(_phalanx.Synchronized, SynchronizedBase[ctypes._SimpleCData[_T]], Generic[_T]):
    value: _T

class SynchronizedArray(
    _phalanx.SynchronizedArray, SynchronizedBase[ctypes.Array[ctypes._SimpleCData[_T]]], Generic[_T]
):
    # Not there at run time, when iterating asks for one item after the other.
    def __iter__(self) -> Iterator[_T]: ...
    @overload
    def __getitem__(self, key: int, /) -> _T: ...
    @overload
    def __getitem__(self, key: slice, /) -> list[_T]: ...
    @overload
    def __setitem__(self, key: int, value: _T, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Sequence[_T], /) -> None: ...

class SynchronizedString(SynchronizedArray[bytes]):
    value: bytes
    raw: bytes
    # A part of it is bytes, not a list.
    @overload  # type: ignore[override]
    def __getitem__(self, key: int, /) -> bytes: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
