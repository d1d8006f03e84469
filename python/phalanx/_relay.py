"""`forkserver.connect_to_new_process`: a child that gets its Process object by a pipe.

It is started as any child of the fork server is, with a Process object of ours that reads the other
one and becomes it. Its exit code is passed on by a thread of the caller.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import forkserver, popen_forkserver, process, spawn
from .context import ForkServerProcess

if TYPE_CHECKING:
    from .process import BaseProcess

__all__ = ["connect"]


class _Popen(popen_forkserver.Popen):
    """Starts a child with the descriptors that its Process object names."""

    def _launch(self, process_obj: BaseProcess) -> None:
        self._fds = process_obj.__dict__.pop("_fds")
        super()._launch(process_obj)


class _Relay(ForkServerProcess):
    """Becomes the Process object that comes by the last descriptor."""

    def __init__(self, fds: list[int]) -> None:
        super().__init__(daemon=False)
        self._fds = fds

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # type: ignore[override]
        return _Popen(process_obj)

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        fds = forkserver.get_inherited_fds()
        assert fds is not None
        me: Any = process.current_process()
        me._inheriting = True
        try:
            with open(fds.pop(), "rb") as data:
                spawn.prepare(pickle.load(data))
                child = pickle.load(data)
        finally:
            del me._inheriting
        code: int = child._bootstrap(parent_sentinel)
        return code


def connect(fds: Sequence[int]) -> tuple[int, int]:
    """See `ForkServer.connect_to_new_process`."""
    data_r, data_w = os.pipe()
    status_r, status_w = os.pipe()
    try:
        relay = _Relay([*fds, data_r])
        relay.start()
    except BaseException:
        for fd in (data_w, status_r, status_w):
            os.close(fd)
        raise
    finally:
        os.close(data_r)
    # Whoever asked for it looks after the child, not `active_children` and the end of this program.
    process._children.discard(relay)
    assert relay.pid is not None
    forkserver.write_signed(status_w, relay.pid)
    threading.Thread(target=_pass_on, args=(relay, status_w), daemon=True).start()
    return status_r, data_w


def _pass_on(relay: _Relay, status_w: int) -> None:
    relay.join()
    try:
        forkserver.write_signed(status_w, relay.exitcode or 0)
    except BrokenPipeError:
        pass  # nobody wants to know
    finally:
        os.close(status_w)
