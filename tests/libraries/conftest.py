"""Unmodified programs with other people's libraries, under ``python -m phalanx``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from processes import run_python

Run = Callable[..., str]

# Says whose queues a process has: that of a worker, if a library calls it there.
WHOSE = """
def whose(_=None):
    import multiprocessing.queues
    return multiprocessing.queues.Queue.__module__
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program's text with `whose` in it; what it prints, if it ends well and is silent."""

    def run_text(text: str, *arguments: str) -> str:
        program = tmp_path / "program.py"
        program.write_text(WHOSE + text)
        done = run_python("-m", "phalanx", program, *arguments, timeout=80)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run_text
