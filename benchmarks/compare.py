"""Count the instructions of fixed pieces of work, and compare them with an earlier count.

What `make bench-compare` runs. Times depend on what else the machine does; the instructions that
one process executes hardly do. Each workload runs twice under valgrind's callgrind, with few and
with many operations: the difference is theirs alone. Waiting, system calls and caches do not show
here: for those there is `run.py`.

The counts lie in `results/instructions.json`: commit them with a change that is meant to alter
them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import repeat
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STORED = HERE / "results" / "instructions.json"
FEW, MANY = 500, 5_500


def _pair(first: Any, second: Any, count: int) -> None:
    for _ in repeat(None, count):
        first()
        second()


def _with(lock: Any, count: int) -> None:
    for _ in repeat(None, count):
        with lock:
            pass


def _through(put: Any, get: Any, item: Any, count: int) -> None:
    for _ in repeat(None, count):
        put(item)
        get()


def _batches(queue: Any, count: int) -> None:
    batch = list(range(100))
    for _ in repeat(None, count // 100):
        queue.put_many(batch)
        queue.get_many(100)


def _increment(value: Any, count: int) -> None:
    for _ in repeat(None, count):
        with value.get_lock():
            value.value += 1


def _copy_item(array: Any, count: int) -> None:
    for _ in repeat(None, count):
        array[5] = array[6]


def _slices(array: Any, count: int) -> None:
    numbers = list(range(100))
    for _ in repeat(None, count // 100):
        array[:] = numbers
        array[:]


def work(name: str, count: int) -> None:
    """Do `count` operations of the workload."""
    import phalanx as mp

    items = {
        "int": 7,
        "tuple": (1, "two", 3.0),
        "dict": {"id": 1, "name": "two", "score": 3.0},
        "1kb": bytes(1024),
    }
    kind, _, what = name.partition(" ")
    if kind in ("Lock", "RLock", "Semaphore", "BoundedSemaphore"):
        lock = getattr(mp, kind)()
        _pair(lock.acquire, lock.release, count)
    elif kind == "with":
        _with(mp.Lock(), count)
    elif kind == "Event":
        event = mp.Event()
        _pair(event.set, event.clear, count)
    elif name == "Queue batches":
        _batches(mp.Queue(), count)
    elif kind == "Queue":
        queue = mp.Queue()
        _through(queue.put, queue.get, items[what], count)
    elif kind == "Pipe":
        reader, writer = mp.Pipe(False)
        _through(writer.send, reader.recv, items[what], count)
    elif kind == "Value":
        _increment(mp.Value("i", 0), count)
    elif name == "Array item":
        _copy_item(mp.Array("i", 100), count)
    elif name == "Array slices":
        _slices(mp.Array("i", 100), count)
    else:
        raise SystemExit(f"no workload is called {name!r}")


PYTHON = (
    ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "with Lock", "Event"]
    + [f"{kind} {item}" for kind in ("Queue", "Pipe") for item in ("int", "tuple", "dict", "1kb")]
    + ["Queue batches", "Value", "Array item", "Array slices"]
)
RUST = ["queue", "queue-many", "queue-tuple", "pipe", "mutex", "value", "create"]


def _instructions(command: list[str], count: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        environment = os.environ | {
            "PYTHONHASHSEED": "0",
            "PHALANX_ARENA_LIMIT": str(1 << 28),  # valgrind has less address space to give
        }
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        done = subprocess.run(
            [*valgrind, *command, str(count)],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        total = [line for line in out.read_text().splitlines() if line.startswith("totals:")]
        return int(total[0].split()[1])


def _per_operation(command: list[str]) -> float:
    few, many = (_instructions(command, count) for count in (FEW, MANY))
    return round((many - few) / (MANY - FEW), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs=2, metavar=("NAME", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--rust", type=Path, help="the program `counted` of benchmarks/rust")
    parser.add_argument("--only", default="", help="beginning of the names to count")
    parser.add_argument("--save", action="store_true", help="store the counts for later")
    options = parser.parse_args()
    if options.work:
        return work(options.work[0], int(options.work[1]))

    version = platform.python_version()
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if stored and stored["python"] != version:
        print(f"The stored counts are of Python {stored['python']}, these of {version}.")
    before: dict[str, float] = stored.get("instructions", {})
    commands = {f"Python: {n}": [sys.executable, __file__, "--work", n] for n in PYTHON}
    if options.rust:
        commands |= {f"Rust: {name}": [str(options.rust), name] for name in RUST}
    counts: dict[str, float] = {}
    print(f"{'instructions an operation':28} {'before':>10} {'now':>10} {'change':>8}")
    for name, command in commands.items():
        if not name.split(": ")[1].startswith(options.only):
            continue
        now = counts[name] = _per_operation(command)
        then = before.get(name)
        change = f"{now / then - 1:+8.1%}" if then else ""
        print(f"{name:28} {then or '-':>10} {now:>10} {change}", flush=True)
    if options.save:
        result = {"python": version, "instructions": before | counts}
        STORED.write_text(json.dumps(result, indent=1) + "\n")
        print(f"stored in {STORED}")


if __name__ == "__main__":
    main()
