"""Starting a child as a new interpreter."""

from __future__ import annotations

import os

from . import _phalanx, popen_fork, resource_tracker, spawn

TYPE_CHECKING = False  # `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from .process import BaseProcess

__all__ = ["Popen"]


class _DupFd:
    """A descriptor that the child inherits under the same number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        return self.fd


class Popen(popen_fork.Popen):
    """A child that is a new interpreter.

    Its arguments wait for it in an anonymous file, so the start never waits for the child to read
    them, however large they are. If the child fails, its exception comes back in the same file.
    """

    method = "spawn"
    DupFd = _DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _launch(self, process_obj: BaseProcess) -> None:
        # First: it refuses a start from a main module that is still being imported.
        data = spawn.get_preparation_data(process_obj._name)
        if "init_main_from_path" in data:
            data["main_code"] = spawn.compiled_main(data["init_main_from_path"])
        child = self.finalizer
        member = child.reserve()
        payload = spawn.pickle_for_child(self, member, data, process_obj)
        file = child.write("phalanx-process", payload)
        tracker = resource_tracker._resource_tracker.reserve()
        arena = _phalanx.arena_fd()
        options = spawn.options_of(process_obj)
        if _phalanx.interrupt_expected():
            options |= spawn.INTERRUPT_HELD
        command = spawn.get_command_line(
            pipe_handle=file,
            tracker_fd=tracker[0],
            parent_pid=os.getpid(),
            arena_fd=arena,
            member=member,
            options=options,
            **dict(zip(("tracker_read", "tracker_permission"), tracker[1:])),
        )
        child.spawn(
            os.fsencode(spawn.get_executable()),
            [os.fsencode(word) for word in command],
            [file, arena, *tracker, *self._fds],
        )
