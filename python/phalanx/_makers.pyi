"""For type checkers only: a context's makers of ctypes objects. See `sharedctypes`."""

import ctypes
from _ctypes import _CData
from collections.abc import Sequence
from typing import Any, Literal, Protocol, overload

from .sharedctypes import (
    _C,
    _T,
    Synchronized,
    SynchronizedArray,
    SynchronizedString,
    _Float,
    _Int,
    _Locked,
)

class RawValueMaker(Protocol):
    @overload
    def __call__(self, typecode_or_type: type[_C], *args: Any) -> _C: ...
    @overload
    def __call__(self, typecode_or_type: _Int, *args: Any) -> ctypes._SimpleCData[int]: ...
    @overload
    def __call__(self, typecode_or_type: _Float, *args: Any) -> ctypes._SimpleCData[float]: ...
    @overload
    def __call__(self, typecode_or_type: Literal["c"], *args: Any) -> ctypes.c_char: ...
    @overload
    def __call__(self, typecode_or_type: Literal["u"], *args: Any) -> ctypes.c_wchar: ...
    @overload
    def __call__(self, typecode_or_type: str, *args: Any) -> Any: ...

class RawArrayMaker(Protocol):
    @overload
    def __call__(
        self, typecode_or_type: type[_C], size_or_initializer: int | Sequence[Any]
    ) -> ctypes.Array[_C]: ...
    @overload
    def __call__(
        self, typecode_or_type: _Int, size_or_initializer: int | Sequence[Any]
    ) -> ctypes.Array[ctypes._SimpleCData[int]]: ...
    @overload
    def __call__(
        self, typecode_or_type: _Float, size_or_initializer: int | Sequence[Any]
    ) -> ctypes.Array[ctypes._SimpleCData[float]]: ...
    @overload
    def __call__(
        self, typecode_or_type: Literal["c"], size_or_initializer: int | Sequence[Any]
    ) -> ctypes.Array[ctypes.c_char]: ...
    @overload
    def __call__(
        self, typecode_or_type: Literal["u"], size_or_initializer: int | Sequence[Any]
    ) -> ctypes.Array[ctypes.c_wchar]: ...
    @overload
    def __call__(self, typecode_or_type: str, size_or_initializer: int | Sequence[Any]) -> Any: ...

class ValueMaker(Protocol):
    @overload
    def __call__(
        self, typecode_or_type: type[ctypes._SimpleCData[_T]], *args: Any, lock: _Locked = True
    ) -> Synchronized[_T]: ...
    @overload
    def __call__(
        self, typecode_or_type: _Int, *args: Any, lock: _Locked = True
    ) -> Synchronized[int]: ...
    @overload
    def __call__(
        self, typecode_or_type: _Float, *args: Any, lock: _Locked = True
    ) -> Synchronized[float]: ...
    @overload
    def __call__(
        self, typecode_or_type: Literal["c"], *args: Any, lock: _Locked = True
    ) -> Synchronized[bytes]: ...
    @overload
    def __call__(
        self, typecode_or_type: Literal["u"], *args: Any, lock: _Locked = True
    ) -> Synchronized[str]: ...
    @overload
    def __call__(
        self, typecode_or_type: _Int, *args: Any, lock: Literal[False]
    ) -> ctypes._SimpleCData[int]: ...
    @overload
    def __call__(
        self, typecode_or_type: _Float, *args: Any, lock: Literal[False]
    ) -> ctypes._SimpleCData[float]: ...
    @overload
    def __call__(self, typecode_or_type: type[_C], *args: Any, lock: Literal[False]) -> _C: ...
    @overload
    def __call__(
        self, typecode_or_type: str | type[_CData], *args: Any, lock: Any = True
    ) -> Any: ...

class ArrayMaker(Protocol):
    @overload
    def __call__(
        self,
        typecode_or_type: type[ctypes.c_char] | Literal["c"],
        size_or_initializer: int | Sequence[Any],
        *,
        lock: _Locked = True,
    ) -> SynchronizedString: ...
    @overload
    def __call__(
        self,
        typecode_or_type: type[ctypes._SimpleCData[_T]],
        size_or_initializer: int | Sequence[Any],
        *,
        lock: _Locked = True,
    ) -> SynchronizedArray[_T]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: _Int,
        size_or_initializer: int | Sequence[Any],
        *,
        lock: _Locked = True,
    ) -> SynchronizedArray[int]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: _Float,
        size_or_initializer: int | Sequence[Any],
        *,
        lock: _Locked = True,
    ) -> SynchronizedArray[float]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: Literal["u"],
        size_or_initializer: int | Sequence[Any],
        *,
        lock: _Locked = True,
    ) -> SynchronizedArray[str]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: _Int,
        size_or_initializer: int | Sequence[Any],
        *,
        lock: Literal[False],
    ) -> ctypes.Array[ctypes._SimpleCData[int]]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: _Float,
        size_or_initializer: int | Sequence[Any],
        *,
        lock: Literal[False],
    ) -> ctypes.Array[ctypes._SimpleCData[float]]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: type[_C],
        size_or_initializer: int | Sequence[Any],
        *,
        lock: Literal[False],
    ) -> ctypes.Array[_C]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | type[_CData],
        size_or_initializer: int | Sequence[Any],
        *,
        lock: Any = True,
    ) -> Any: ...
