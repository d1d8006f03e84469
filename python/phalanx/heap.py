"""Pieces of shared memory.

All of it comes from the family's one arena, so there is nothing here to manage: `Heap` and `Arena`
stand where programs know them from the standard library.
"""

from __future__ import annotations

from ._phalanx import Block

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = ["Arena", "Block", "BufferWrapper", "Heap"]


class Arena:
    """A piece of shared memory of its own, with the buffer protocol by way of `buffer`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._block = Block(size)
        self.buffer = memoryview(self._block)

    def __reduce__(self) -> Any:
        return rebuild_arena, (type(self), self._block)


def reduce_arena(arena: Arena) -> Any:
    """How an arena is pickled."""
    return arena.__reduce__()


def rebuild_arena(cls: type[Arena], block: Block) -> Arena:
    """Unpickle an arena."""
    arena = cls.__new__(cls)
    arena.size = len(block)
    arena._block = block
    arena.buffer = memoryview(block)
    return arena


class Heap:
    """Gives out blocks of shared memory."""

    def malloc(self, size: int) -> Block:
        """A block of `size` zeroed bytes, which is freed when the last process has dropped it."""
        if size < 0:
            raise ValueError(f"the size must not be negative, as {size} is")
        return Block(size)

    def free(self, block: Block) -> None:
        """Do nothing: dropping the block frees it."""


class BufferWrapper:
    """`size` bytes of shared memory, zeroed at first; pickled by handle."""

    _heap: ClassVar[Heap] = Heap()

    def __init__(self, size: int) -> None:
        self._block = BufferWrapper._heap.malloc(size)
        self._size = size

    def create_memoryview(self) -> memoryview:
        """The bytes, to be read and written. They stay as long as the view does."""
        return memoryview(self._block)
