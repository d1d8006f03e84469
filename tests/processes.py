"""Finding the processes that a test has started, by /proc, and waiting for what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended (a zombie has)."""
    fields = stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def descendants(root: int) -> set[int]:
    """All processes below `root`, zombies included."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: set[int] = set()
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo.extend(below)
    return found


def servants() -> set[int]:
    """The helpers that live as long as this process, and all below: fork server and tracker."""
    found: set[int] = set()
    for package in ("phalanx", "multiprocessing"):
        for module, attribute, pid in (
            ("forkserver", "_forkserver", "_forkserver_pid"),
            ("resource_tracker", "_resource_tracker", "_pid"),
        ):
            helper = getattr(sys.modules.get(f"{package}.{module}"), attribute, None)
            if number := getattr(helper, pid, None):
                found |= {number} | descendants(number)
    return found


def left_over(before: set[int]) -> list[int]:
    """The running descendants of this process that were not there before and serve nobody.

    Zombies are collected on the way: those whose Process object still exists by the package
    itself, orphans by us. A child that the fork server has started is found by its Process object.
    """
    process = sys.modules.get("phalanx.process")
    started = {child.pid for child in process.active_children()} if process else set()
    left = []
    for pid in (descendants(os.getpid()) - servants() | started) - before:
        if is_running(pid):
            left.append(pid)
        elif stat(pid)[1:2] == [str(os.getpid())]:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return left


def describe(pid: int) -> str:
    """A process for a message: its number, state and command line."""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return f"{pid} ({' '.join(stat(pid)[:1])}) {command}"
    return str(pid)


def end(pid: int) -> None:
    """Kill a process, wait for its end and, if it is a child of ours, collect it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    while is_running(pid):  # somebody else's child; nothing can keep it
        time.sleep(0.01)


def run_python(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float = 60,
    options: Sequence[str] = (),
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end in a clean environment, all output caught.

    On a timeout the whole process group is killed and what it has printed is shown.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment.update(env or {})
    command = [sys.executable, *options, *map(str, arguments)]
    program = subprocess.Popen(
        command,
        env=environment,
        cwd=cwd,
        text=True,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = program.communicate(stdin or None, timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        out, err = program.communicate()
        raise AssertionError(
            f"no end after {timeout} s: {command}\n--- stdout\n{out}\n--- stderr\n{err}"
        ) from None
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)
