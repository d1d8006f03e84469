"""Starting a child by fork, and what all start methods share: waiting, signals, the end."""

from __future__ import annotations

import os
import sys
from atexit import _clear as _forget_exit_functions
from atexit import _run_exitfuncs as _run_exit_functions
from atexit import register as _call_at_exit

from . import _failure, _phalanx, util
from .process import _CHILDREN_RUN_ATEXIT

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from typing import NoReturn

    from .process import BaseProcess

__all__ = ["Popen"]

_SIGKILL, _SIGTERM = 9, 15


class Popen:
    """A child process, from its start to its end.

    ``sentinel`` is a pidfd: it becomes readable when the child ends and can never mean another
    process, so waiting and signalling are safe even if somebody else has reaped the child.
    """

    method = "fork"

    pid: int
    sentinel: int
    _member: int  # the child's place in the family

    def __init__(self, process_obj: BaseProcess) -> None:
        util._flush_std_streams()
        self.returncode: int | None = None
        self._failure_fd: int | None = None
        self._failure: BaseException | None = None
        # It owns all that the start acquires: see `_keep`.
        self.finalizer = _phalanx.Child()
        try:
            self._launch(process_obj)
            self._take()
        except BaseException:
            self._undo()
            raise

    def duplicate_for_child(self, fd: int) -> int:
        """What stands for descriptor ``fd`` in the child's arguments."""
        return fd

    # -- the start -----------------------------------------------------------------------------

    def _launch(self, process_obj: BaseProcess) -> None:
        if f"{__package__}.shared_memory" in sys.modules:
            from .resource_tracker import _resource_tracker

            _resource_tracker.reserve()
        mortal, code = process_obj.daemon or process_obj._follows_parent, 1
        parent_sentinel = self.finalizer.fork(mortal)
        if parent_sentinel is not None:
            try:
                prepare_forked()
                code = process_obj._bootstrap(parent_sentinel)
            finally:
                end_forked(code)

    def _take(self) -> None:
        """Know the child, which has been started."""
        child = self.finalizer
        self.pid = child.pid
        self.sentinel = child.sentinel
        self._failure_fd = child.file
        self._member = child.place

    def _keep(self) -> None:
        """The start is over: from here on the child lives whether or not this object does.

        Until then it ends with it, as it has to if Ctrl-C comes before anybody knows of it.
        """
        self.finalizer.keep()

    def _undo(self) -> None:
        """The start has failed: end the child, if it has begun, and give back what was its."""
        self.finalizer.undone()

    # -- the end -------------------------------------------------------------------------------

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, or None while the child runs; waits for the end if ``flag`` is 0."""
        return self._await(0.0 if flag == os.WNOHANG else None)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most ``timeout`` seconds; the exit code, or None."""
        return self._await(timeout)

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            code = self._wait_native(timeout)
            if code is not None and self.returncode is None:
                self.returncode = code
                _phalanx.cancel_child(self._member)
        return self.returncode

    def _wait_native(self, timeout: float | None) -> int | None:
        return _phalanx.wait_child(self.sentinel, timeout)

    def exception(self) -> BaseException | None:
        """The exception that ended the child, once it has ended."""
        if self._failure is None and self._failure_fd is not None and self.returncode:
            self._failure = _failure.read(self._failure_fd)
        return self._failure

    # -- signals -------------------------------------------------------------------------------

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None:
            _phalanx.signal_process(self.sentinel, sig)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._send_signal(_SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._send_signal(_SIGKILL)

    def close(self) -> None:
        """Give the descriptors back."""
        self.finalizer()
        self._failure_fd = None


def prepare_forked() -> None:
    """First thing in a forked child: forget what the parent wanted done at its exit."""
    if _CHILDREN_RUN_ATEXIT:
        _forget_exit_functions()
        _call_at_exit(util._exit_function)


def end_forked(code: int) -> NoReturn:
    """Last thing in a forked child: it must not return into its parent's program."""
    try:
        if _CHILDREN_RUN_ATEXIT:
            _run_exit_functions()
    finally:
        os._exit(code)
