"""There for likeness with the standard library: phalanx starts no processes on Windows."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["Popen"]


class Popen:
    """Cannot be made: phalanx runs on Linux only."""

    method = "spawn"

    def __init__(self, process_obj: Any) -> NoReturn:
        raise NotImplementedError("phalanx runs on Linux only; use multiprocessing on Windows")
