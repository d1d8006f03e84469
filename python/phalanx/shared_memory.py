"""Named blocks of shared memory, which any program on the machine can attach to.

    block = SharedMemory(create=True, size=1024)
    block.buf[:5] = b"hello"
    ...
    SharedMemory(name=block.name).buf[:5]     # in any other process

A block stays until somebody calls `unlink()`, or until the program that created it is gone, however
it ended: its resource tracker sees to that. (Processes of one family that need no names are better
off with `Array` or `Queue`, whose memory is given back with its last user.)
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import types
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

__all__ = ["ShareableList", "SharedMemory"]

_USE_POSIX = True
_SHM_NAME_PREFIX = "/psm_"
_SHM_SAFE_NAME_LENGTH = 14  # a limit of other systems, kept for the sake of short names

_DIRECTORY = "/dev/shm"


def __getattr__(name: str) -> Any:
    if name == "_posixshmem":  # for programs that call it by way of this module
        import _posixshmem  # type: ignore[import-not-found]

        return _posixshmem
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _make_filename() -> str:
    """Invent a name for a block."""
    return _SHM_NAME_PREFIX + os.urandom((_SHM_SAFE_NAME_LENGTH - len(_SHM_NAME_PREFIX)) // 2).hex()


def _path(name: str) -> str:
    """Where the system keeps the block of a name that begins with a slash, as shm_open(3) does."""
    if "/" in name[1:] or name in ("/", "/.", "/.."):
        raise OSError(errno.EINVAL, "no name for a block of shared memory", name)
    return _DIRECTORY + name


class SharedMemory:
    """A block of shared memory, created or attached to.

    `size` counts for new blocks only. `close()` gives up this object's access to the block,
    `unlink()` removes its name.

    A block that is created is tracked: should its creator's whole program end without `unlink()`,
    the block is removed. Attaching to a block does not make it one's own, so such a block is only
    tracked with `track=True`.
    """

    _name: str | None = None
    _fd = -1
    _mmap: mmap.mmap | None = None
    _buf: memoryview | None = None
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _track = False

    def __init__(
        self,
        name: str | None = None,
        create: bool = False,
        size: int = 0,
        *,
        track: bool | None = None,
    ) -> None:
        if size < 0:
            raise ValueError(f"'size' must be a positive integer, not {size}")
        if create:
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
            self._flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")

        self._open(name)
        try:
            if create:
                os.ftruncate(self._fd, size)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mmap.mmap(self._fd, self._size)
        except BaseException:
            os.close(self._fd)
            self._fd = -1
            if create:
                os.unlink(_path(self._name or ""))
            raise
        self._buf = memoryview(self._mmap)
        self._track_kept_out = track is False
        self._track = create if track is None else track
        if self._track:
            from . import resource_tracker

            resource_tracker.register(self._name or "", "shared_memory")

    def _open(self, name: str | None) -> None:
        if name is not None:
            self._open_name("/" + name if self._prepend_leading_slash else name)
            return
        while True:
            try:
                self._open_name(_make_filename())
            except FileExistsError:
                continue
            return

    def _open_name(self, name: str) -> None:
        try:
            self._fd = os.open(_path(name), self._flags | os.O_NOFOLLOW | os.O_CLOEXEC, self._mode)
        except FileNotFoundError:
            if not os.path.isdir(_DIRECTORY):
                raise OSError(
                    errno.ENOSYS,
                    f"there is no {_DIRECTORY} here, where blocks of shared memory with a name"
                    " are kept; Value, Array and Queue do without it",
                ) from None
            raise
        self._name = name

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, BufferError):
            # With views of it around, the memory stays until the last of them is gone.
            pass

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.name, False, self.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, size={self.size})"

    @property
    def buf(self) -> memoryview:
        """The contents, as a writable memoryview; None after `close()`."""
        return self._buf  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The name by which other processes attach to the block."""
        name = self._name or ""
        return name.removeprefix("/") if self._prepend_leading_slash else name

    @property
    def size(self) -> int:
        """How many bytes the block has."""
        return self._size

    def close(self) -> None:
        """Give up access to the block from this object.

        Raises `BufferError` while slices of `buf`, or arrays on it, are in use.
        """
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        if self._mmap is not None:
            self._mmap.close()
            self._mmap = None
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def unlink(self) -> None:
        """Remove the block's name; the memory is free when nobody uses it any more.

        Whoever is last to need the name calls this, once. Raises `FileNotFoundError` if the name
        is gone already.
        """
        if not self._name:
            return
        os.unlink(_path(self._name))
        if not self._track_kept_out:
            from . import resource_tracker

            # A block that this object only attached to may be tracked by its creator, in the same
            # family. Where there is no tracker, there is nothing to tell it.
            if self._track or getattr(resource_tracker._resource_tracker, "_fd", None) is not None:
                resource_tracker.unregister(self._name, "shared_memory")


_encoding = "utf8"

# What a slot holds, by its code. The first four are those of the standard library, where text and
# bytes lose zeros at their end; values with such zeros have codes of their own here.
_PLAIN, _STR, _BYTES, _NONE, _EXACT_STR, _EXACT_BYTES = range(6)


class ShareableList:
    """A list in a named block of shared memory, of a fixed length.

    Its values are int (64 bits), float, bool, str, bytes and None. A value can be replaced by one
    of any type; str and bytes have to fit into the slot, whose size is that of its first value,
    and up to eight bytes more. Nothing guards it against two processes
    that write at once.
    """

    # The block, in the format of the standard library:
    #
    #   q             N, the number of items
    #   q * (N + 1)   where each item begins, and the last one ends, counted from the next line
    #   ...           the slots, multiples of 8 bytes
    #   8s * N        the struct format of each item
    #   b * N         the code of each item

    _alignment = 8

    def __init__(self, sequence: Iterable[Any] | None = None, *, name: str | None = None) -> None:
        if sequence is None and name is not None:
            self.shm = SharedMemory(name)
            self._load()
            return
        values = [] if sequence is None else list(sequence)
        packed = [_pack(value) for value in values]
        self._list_len = len(values)
        self._allocated_offsets = [0]
        for value, (format, data, _code) in zip(values, packed):
            room = 8
            if format[-1] == "s":
                # The standard library goes by the number of characters, which need not be enough.
                room = 8 * max(len(value) // 8 + 1, -(-len(data) // 8))
            if len(f"{room}s") > 8:
                raise ValueError(f"a value of {len(data)} bytes is too long for a ShareableList")
            self._allocated_offsets.append(self._allocated_offsets[-1] + room)
        size = self._offset_back_transform_codes + self._list_len
        self.shm = SharedMemory(name, create=True, size=size)
        struct.pack_into(
            f"{self._list_len + 2}q", self.shm.buf, 0, self._list_len, *self._allocated_offsets
        )
        for position, (format, data, code) in enumerate(packed):
            if format[-1] == "s" and code in (_STR, _BYTES):
                format = f"{self._room(position)}s"
            self._store(position, format, data, code)

    def _load(self) -> None:
        buf = self.shm.buf
        try:
            (self._list_len,) = struct.unpack_from("q", buf, 0)
            if not 0 <= self._list_len <= len(buf) // 16:
                raise struct.error
            self._allocated_offsets = list(struct.unpack_from(f"{self._list_len + 1}q", buf, 8))
            ends = zip(self._allocated_offsets, self._allocated_offsets[1:])
            if self._allocated_offsets[0] != 0 or any(a > b for a, b in ends):
                raise struct.error
            if self._offset_back_transform_codes + self._list_len > len(buf):
                raise struct.error
        except struct.error:
            raise ValueError(f"{self.shm.name!r} holds no ShareableList") from None

    def _store(self, position: int, format: str, data: Any, code: int) -> None:
        buf = self.shm.buf
        at = self._offset_data_start + self._allocated_offsets[position]
        if format[-1] == "s":
            end = at + self._room(position)
            buf[at:end] = data.ljust(end - at, b"\0")
        else:
            struct.pack_into(format, buf, at, data)
        struct.pack_into(
            "8s", buf, self._offset_packing_formats + 8 * position, format.encode(_encoding)
        )
        struct.pack_into("b", buf, self._offset_back_transform_codes + position, code)

    def _position(self, position: int, complaint: str) -> int:
        index = position + self._list_len if position < 0 else position
        if not 0 <= index < self._list_len:
            raise IndexError(complaint)
        return index

    def _room(self, position: int) -> int:
        return self._allocated_offsets[position + 1] - self._allocated_offsets[position]

    def _get_packing_format(self, position: int) -> str:
        """Return the struct format of one item."""
        position = self._position(position, "Requested position out of range.")
        at = self._offset_packing_formats + 8 * position
        return bytes(self.shm.buf[at : at + 8]).rstrip(b"\0").decode(_encoding)

    def __getitem__(self, position: int) -> Any:
        position = self._position(position, "index out of range")
        at = self._offset_data_start + self._allocated_offsets[position]
        code = self.shm.buf[self._offset_back_transform_codes + position]
        if code == _NONE:
            return None
        (value,) = struct.unpack_from(self._get_packing_format(position), self.shm.buf, at)
        if code in (_STR, _BYTES):
            value = value.rstrip(b"\0")
        if code in (_STR, _EXACT_STR):
            return value.decode(_encoding)
        return value

    def __setitem__(self, position: int, value: Any) -> None:
        position = self._position(position, "assignment index out of range")
        format, data, code = _pack(value)
        if format[-1] == "s":
            if len(data) > self._room(position):
                raise ValueError(
                    f"bytes/str item exceeds available storage: it has {len(data)} bytes, and the"
                    f" slot {self._room(position)}"
                )
            if code in (_STR, _BYTES):
                format = f"{self._room(position)}s"
        self._store(position, format, data, code)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(self.__class__, name=self.shm.name), ()

    def __len__(self) -> int:
        return self._list_len

    def __iter__(self) -> Iterator[Any]:
        return (self[position] for position in range(self._list_len))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)}, name={self.shm.name!r})"

    @property
    def format(self) -> str:
        """The struct formats of all items, joined."""
        return "".join(self._get_packing_format(i) for i in range(self._list_len))

    @property
    def _offset_data_start(self) -> int:
        return (self._list_len + 2) * 8

    @property
    def _offset_packing_formats(self) -> int:
        return self._offset_data_start + self._allocated_offsets[-1]

    @property
    def _offset_back_transform_codes(self) -> int:
        return self._offset_packing_formats + self._list_len * 8

    def count(self, value: Any) -> int:
        """Return how many items equal `value`."""
        return sum(value == item for item in self)

    def index(self, value: Any) -> int:
        """Return the first position of `value`; raise `ValueError` if it is not there."""
        for position, item in enumerate(self):
            if value == item:
                return position
        raise ValueError(f"{value!r} not in this container")

    __class_getitem__: Any = classmethod(types.GenericAlias)


def _pack(value: Any) -> tuple[str, Any, int]:
    """Return the struct format, the value to pack, and the code of a value."""
    if value is None:
        return "xxxxxx?x", True, _NONE
    if isinstance(value, bool):
        return "xxxxxxx?", value, _PLAIN
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise struct.error(f"a ShareableList's integers have 64 bits: {value!r} does not fit")
        return "q", value, _PLAIN
    if isinstance(value, float):
        return "d", value, _PLAIN
    if isinstance(value, str):
        data, plain, exact = value.encode(_encoding), _STR, _EXACT_STR
    elif isinstance(value, bytes):
        data, plain, exact = value, _BYTES, _EXACT_BYTES
    else:
        raise TypeError(
            "a ShareableList holds int, float, bool, str, bytes and None, not"
            f" {type(value).__name__}"
        )
    return f"{len(data)}s", data, exact if data.endswith(b"\0") else plain
