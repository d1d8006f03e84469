"""What a manager's server and its relatives share: objects of the arena.

The server has one of each; a client of the same family gets another one for the same shared object
with its first reference, and needs the server no more for what that can do. For all other clients
the server does it, in their names (`clients.Client.perform`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import _phalanx
from .clients import check_client

__all__ = ["ForServer", "Primitive", "attach"]

_kinds: dict[str, type[Primitive]] = {}


class ForServer(Exception):
    """Raised by a client's object for what only the server can do: a method and its arguments."""


class Primitive:
    """Something to wait for, of which the server and its clients of the family have one each."""

    # What a client does itself.
    _methods: frozenset[str]
    # The name of the native class.
    _kind: str
    _native: Any
    # Called now and then in a wait; raises if it is in vain. The server's asks for its client.
    _watch: Callable[[], object] = staticmethod(check_client)

    def __init_subclass__(cls) -> None:
        if "_kind" in cls.__dict__:
            _kinds[cls._kind] = cls

    def __init__(self, *args: Any) -> None:
        self._native = getattr(_phalanx, self._kind)()
        self._native._create(*args)

    def _share(self) -> tuple[Any, ...] | None:
        """What `attach` needs in another process of the family; None if only the server can."""
        if type(self) is not _kinds[self._kind]:
            return None  # a subclass may do what it likes
        return self._kind, *self._native._handle_for_pickle()

    def _attach(self, family: int, handle: int, *rest: Any) -> None:
        self._native = getattr(_phalanx, self._kind)()
        self._native._attach(family, handle, *rest)

    def _wait(self, function: Callable[..., Any], *args: Any) -> Any:
        return _phalanx.watched(self._watch, function, *args)

    def _inherit(self, member: int) -> None:
        """Leave locked what a process holds that ends in good order."""

    def _ask(self, *request: Any) -> Any:
        """Have the server do what only it can."""
        raise ForServer(*request)

    def _take_back(self, method: str) -> None:
        """Undo what a method was good for: the client it was done for is gone."""


def attach(shared: tuple[Any, ...], watch: Callable[[], object]) -> Any:
    """Return an object of this process for what the server has shared."""
    name, *state = shared
    kind = _kinds[name]
    made = kind.__new__(kind)
    made._watch = watch
    made._attach(*state)
    return made
