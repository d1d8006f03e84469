"""Soak the package: kill its processes at random, and account for every message and task.

    soak.py [--minutes M] [--seed S]

Runs tests/soak/program.py in a folder of its own and looks for what it leaves behind: processes,
files, descriptors, memory. Exits with 0 if nothing was lost and nothing is left.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import processes

PR_SET_CHILD_SUBREAPER = 36
#: What the last round, and the end of a program, may take on a busy machine, in seconds.
GRACE = 240.0


def soak(minutes: float, seed: int) -> int:
    """Run the program and report; returns the exit code."""
    # Orphans come to this process, where they are found.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        script = processes.ROOT / "tests/soak/program.py"
        program = subprocess.Popen(
            [sys.executable, script, str(minutes * 60), str(seed)],
            env={**os.environ, "TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            out, _ = program.communicate(timeout=minutes * 60 + GRACE)
        except subprocess.TimeoutExpired:
            out = ""
            print("the soak hangs", file=sys.stderr)
        files = [str(path) for path in Path(folder).rglob("*")]
    deadline = time.monotonic() + 2
    while (alive := processes.descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in alive:
            if processes.stat(pid)[:1] == ["Z"] and pid != program.pid:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass
        time.sleep(0.02)
    left = [processes.describe(pid) for pid in alive]
    for pid in alive:
        processes.end(pid)
    if program.returncode != 0 or not out:
        print(f"soak: FAILED (seed {seed})", *left, sep="\n")
        return 1

    totals = json.loads(out)
    kills = totals["kills"]
    detail = ", ".join(f"{number} {name}s" for name, number in sorted(kills.items()))
    print(
        f"soak: {totals['rounds']} rounds, seed {seed}\n"
        f"kills:       {sum(kills.values())} ({detail})\n"
        f"messages:    {totals['messages']} received once; "
        f"{totals['in_hand']} were in the hands of the killed\n"
        f"tasks:       {totals['tasks']}: {totals['tasks'] - totals['lost_tasks']} results, "
        f"{totals['lost_tasks']} WorkerDied\n"
        f"left behind: {len(left)} processes, {totals['descriptors_left']} descriptors, "
        f"{totals['blocks_left']} blocks of the arena, {len(files)} files"
    )
    # A process may be killed between taking a block and writing down where it is.
    lost = totals["blocks_left"] > sum(kills.values())
    if left or files or lost or totals["descriptors_left"] > 0:
        print("soak: FAILED, something is left:", *left, *files, sep="\n")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    arguments = parser.parse_args()
    return soak(arguments.minutes, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
