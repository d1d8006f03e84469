"""How a child that another library starts comes into the family.

loky and others have a ``Popen`` of their own, which follows the standard library's protocol: it
calls `context.set_spawning_popen` with itself, pickles what the child needs, and passes on the
descriptors that were given to its ``duplicate_for_child``. The pickle of each shared object then
holds an `Invitation` in place of the family's number, and whoever unpickles it becomes a member.
"""

from __future__ import annotations

from . import _phalanx

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Invitation", "accept"]


class Invitation:
    """A place in the family that is reserved for the child which ``popen`` starts."""

    def __init__(self, popen: Any) -> None:
        self.member = _phalanx.reserve_child()
        try:
            self._arena = popen.DupFd(popen.duplicate_for_child(_phalanx.arena_fd()))
        except BaseException:
            _phalanx.cancel_child(self.member)
            raise
        # What the child holds is given back by `process` when it sees the end of it.
        popen._invited = self.member

    def __reduce__(self) -> tuple[Any, ...]:
        return accept, (self._arena, self.member, _phalanx.family())


def accept(arena: Any, member: int, family: int) -> int:
    """Take the place that was reserved; the number of the family.

    A process that has shared objects already keeps to the family that it is of: if that is another
    one, the object in whose pickle this is says so.
    """
    if not _phalanx.has_arena():
        _phalanx.adopt(arena.detach(), member)
    return family
