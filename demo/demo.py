"""Count the words of Python's own library with phalanx and with the standard library.

Runs `examples/python/11_word_count.py` as it is, and the same text on the standard library's
multiprocessing with a Counter registered (`standard.py`); checks that both counted the same, and
prints the ten most common words and both times.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import phalanx

PROGRAM = Path(__file__).parent.parent / "examples" / "python" / "11_word_count.py"
IMPORT = "import phalanx as mp"
ROUNDS = 3


def library_files() -> list[str]:
    """Every .py file of the running Python's library, without what was installed into it."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(
        str(path)
        for path in root.rglob("*.py")
        if not skip.intersection(path.parts) and path.is_file()
    )


def load_programs(folder: str) -> dict[str, object]:
    """The program twice, as modules that child processes can import, too."""
    text = PROGRAM.read_text()
    assert text.count(IMPORT) == 1, f"{PROGRAM} must say {IMPORT!r} once"
    for name, line in (("on_phalanx", IMPORT), ("on_standard", "import standard as mp")):
        Path(folder, f"{name}.py").write_text(text.replace(IMPORT, line))
    sys.path[:0] = [folder, str(Path(__file__).parent)]
    return {
        "phalanx": importlib.import_module("on_phalanx"),
        "multiprocessing": importlib.import_module("on_standard"),
    }


def run(program, files: list[str]) -> tuple[str, dict[str, int], float]:
    """What the program prints, all its counts, and the seconds that it takes."""
    printed = io.StringIO()
    start = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        counts = program.main(files)
    return printed.getvalue(), counts, time.perf_counter() - start


def main() -> int:
    files = library_files()
    print(
        f"{PROGRAM.name} on the {len(files)} .py files of Python "
        f"{sys.version.split()[0]}'s library, start method "
        f"{phalanx.get_start_method()}, {os.cpu_count()} CPUs"
    )
    with tempfile.TemporaryDirectory() as folder:
        programs = load_programs(folder)
        for path in files:  # so that neither is the first to read them from the disk
            Path(path).read_bytes()
        times: dict[str, list[float]] = {name: [] for name in programs}
        results = {}
        for _ in range(ROUNDS):
            for name, program in programs.items():
                printed, results[name], seconds = run(program, files)
                times[name].append(seconds)
    if results["phalanx"] != results["multiprocessing"]:
        print("the counts differ", file=sys.stderr)
        return 1
    print(printed, end="")
    print("the counts are equal")
    for name, seconds in times.items():
        each = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"{name:>16}: {statistics.median(seconds):.2f} s (median of {each})")
    return 0


if __name__ == "__main__":
    multiprocessing.set_start_method(phalanx.get_start_method())
    sys.exit(main())
