"""How exceptions come from a child to its parent, above all the one that ended it.

Each child gets a small anonymous file from its parent. A child that fails writes its exception
there; the parent reads it once the child has ended. The file needs no reader and never blocks,
and it goes with its last user, however that ends.
"""

from __future__ import annotations

import os

from ._phalanx import failure_file

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

__all__ = ["end_of", "portable", "record", "read"]

# What a report begins with: under spawn and forkserver the same file brought the child its
# arguments, and a child may die before it has read them.
_MAGIC = b"phalanx failure\n"


class _Portable:
    """Pickles as its exception, which is made anew from its parts."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self.error), self.error.args, self.error.__dict__)


def _restore(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def portable(error: BaseException) -> BaseException | _Portable:
    """What to pickle so that ``error`` arrives.

    That is the exception itself, unless it cannot be unpickled: its pickle calls its class with
    ``error.args``, and many a class wants other arguments. Then it is a stand-in, which becomes the
    exception without such a call.
    """
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        if type(error).__reduce__ is BaseException.__reduce__:
            return _Portable(error)
    return error


def record(error: BaseException) -> str:
    """Leave ``error`` for the parent, and give its traceback as text."""
    import pickle
    import traceback

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    fd = failure_file()
    if fd >= 0:
        try:
            data = pickle.dumps((portable(error), text))
            pickle.loads(data)
        except Exception:
            # The exception, or something in it, cannot travel: its name and text can.
            data = pickle.dumps((_name(error), str(error), text))
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, _MAGIC + data, 0)
        except OSError:
            pass
    return text


def read(fd: int) -> BaseException | None:
    """In the parent, after the end of the child: what it recorded in its file."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    if not data.startswith(_MAGIC):
        return None
    import pickle

    try:
        error, *rest = pickle.loads(data[len(_MAGIC) :])
    except Exception as problem:
        return RuntimeError(f"the child's exception cannot be read here: {problem!r}")
    if isinstance(error, str):
        message, text = rest
        error = RuntimeError(f"{error}: {message}")
    else:
        (text,) = rest
    from .pool import RemoteTraceback

    error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
    return error  # type: ignore[no-any-return]


def end_of(exitcode: int | None) -> str:
    """How a process ended, for a message."""
    if exitcode is None or exitcode >= 0:
        return f"exited with code {exitcode}"
    import signal

    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"


def _name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
