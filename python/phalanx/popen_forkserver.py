"""Starting a child by the fork server."""

from __future__ import annotations

import os

from . import _phalanx, forkserver, popen_fork, spawn

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from .process import BaseProcess

__all__ = ["Popen"]


class _DupFd:
    """A descriptor that is sent to the child along with the request."""

    def __init__(self, ind: int) -> None:
        self.ind = ind

    def detach(self) -> int:
        fds = forkserver.get_inherited_fds()
        assert fds is not None
        return fds[self.ind]


class Popen(popen_fork.Popen):
    """A child of the fork server.

    ``sentinel`` is a socket on which the server tells how the child ended.
    """

    method = "forkserver"
    DupFd = _DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: BaseProcess) -> None:
        data = forkserver.preparation_data(process_obj._name)
        child = self.finalizer
        payload = spawn.pickle_for_child(self, child.reserve(), data, process_obj)
        child.write("phalanx-process", payload)
        forkserver._forkserver.start(
            child,
            spawn.options_of(process_obj),
            self._fds,
            watched=process_obj.daemon or process_obj._follows_parent,
        )

    def _wait_native(self, timeout: float | None) -> int | None:
        return _phalanx.zygote_wait(self.sentinel, timeout)

    def _send_signal(self, sig: int) -> None:
        if self.poll() is None:
            try:
                os.kill(self.pid, sig)
            except ProcessLookupError:
                pass
