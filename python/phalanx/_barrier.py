"""`synchronize.Barrier`, apart from the others since it brings the module `threading`.

With that a fork has hooks to run, which touch some 110 pages, and a child of the fork server 380
in all.
"""

from __future__ import annotations

import threading

from . import _phalanx
from .synchronize import _rebuild

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .context import BaseContext

__all__ = ["Barrier"]


class Barrier(_phalanx.Barrier, threading.Barrier):
    """A meeting point of a fixed number of processes."""

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        ctx: BaseContext | None,
    ) -> None:
        self._create(parties, action, timeout)

    def __reduce__(self) -> Any:
        state = (*self._handle_for_pickle(), self._action, self._timeout)
        return _rebuild, (type(self), state)

    def __repr__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        if self.broken:
            return f"<{name} at {id(self):#x}: broken>"
        return f"<{name} at {id(self):#x}: waiters={self.n_waiting}/{self.parties}>"


Barrier.__module__ = f"{__package__}.synchronize"
