"""What managers, proxies and servers say to each other.

The messages are those of the standard library. On a new connection, once both sides have proved
that they know the key, a client sends one request to the server itself, and gets one answer:

    (None, function, args, kwds)              ->  (kind, result)

`accept_connection` is the one that goes on: afterwards the connection takes requests to objects, by
their ident, until it is closed.

    (ident, method, args, kwds)               ->  (kind, result)

    #RETURN           the result
    #PROXY            (names of methods, token): the result stays in the server as an object
    #ERROR            the exception that the method raised
    #TRACEBACK        the text of the traceback, if the request itself was wrong
    #UNSERIALIZABLE   the text of what went wrong in pickling the result

A server of this package also answers requests to itself on such a connection, and says so by
answering `accept_connection` with `ANSWERS_ITSELF` instead of None. That saves a new connection,
with its authentication, for each new proxy. And it learns which process a connection comes from: a
client appends `@session.thread` to the name that it gives `accept_connection` (which names a thread
and means nothing else). A server of the standard library takes no notice of either.

Over a pipe both are processes of this package and of one family. There a request without keyword
arguments comes without the empty dictionary, since that alone would have to be pickled: 3.7 us
instead of 1.1 there and back.
"""

from __future__ import annotations

from typing import Any

from .. import connection

__all__ = [
    "ANSWERS_ITSELF",
    "RemoteError",
    "Token",
    "all_methods",
    "convert_to_error",
    "dispatch",
    "listener_client",
    "public_methods",
]

ANSWERS_ITSELF = "phalanx"

listener_client: dict[str, tuple[Any, Any]] = {
    "pickle": (connection.Listener, connection.Client),
    "xmlrpclib": (connection.XmlListener, connection.XmlClient),
}


class Token:
    """Where a shared object is: its type's name, its server's address, and its ident there."""

    __slots__ = ("address", "id", "typeid")

    def __init__(self, typeid: str, address: Any, id: str) -> None:
        self.typeid = typeid
        self.address = address
        self.id = id

    def __getstate__(self) -> tuple[str, Any, str]:
        return self.typeid, self.address, self.id

    def __setstate__(self, state: tuple[str, Any, str]) -> None:
        self.typeid, self.address, self.id = state

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(typeid={self.typeid!r}, address={self.address!r},"
            f" id={self.id!r})"
        )


class RemoteError(Exception):
    """Something went wrong in a manager's server; the text is its traceback."""

    def __str__(self) -> str:
        line = "-" * 75
        return f"\n{line}\n{self.args[0]}{line}"


def dispatch(c: Any, id: Any, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006
    """Send a request over a connection, and return the result or raise the error."""
    c.send((id, methodname, args, kwds))
    kind, result = c.recv()
    if kind == "#RETURN":
        return result
    try:
        raise convert_to_error(kind, result)
    finally:
        del result  # or the exception and this frame keep each other alive


def convert_to_error(kind: str, result: Any) -> BaseException:
    """Return the exception that an answer other than a result stands for."""
    if kind == "#ERROR":
        error: BaseException = result
        return error
    if kind in ("#TRACEBACK", "#UNSERIALIZABLE"):
        if not isinstance(result, str):
            raise TypeError(f"Result {result!r} (kind {kind!r}) type is {type(result)}, not str")
        if kind == "#UNSERIALIZABLE":
            return RemoteError(f"Unserializable message: {result}\n")
        return RemoteError(result)
    return ValueError(f"Unrecognized message type {kind!r}")


def all_methods(obj: Any) -> list[str]:
    """Return the names of all that can be called on an object."""
    return [name for name in dir(obj) if callable(getattr(obj, name))]


def public_methods(obj: Any) -> list[str]:
    """Return the names of an object's methods that do not begin with an underscore."""
    return [name for name in all_methods(obj) if name[0] != "_"]
