"""`python -m phalanx bench`: a quick look at this machine, the standard library beside phalanx.

The full benchmarks, with the other libraries, are in the folder `benchmarks` of the source.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from .workloads import WORKLOADS, Workload

__all__ = ["main", "ratio"]

_QUICK = (
    "queue_int queue_dict pipe_one_way pipe_round_trip pool_map_chunk1 pool_apply start_fork "
    "start_forkserver manager_dict lock_with value_increment import_ms"
).split()
_ROUNDS = 3
_HELP = """\
usage: python -m phalanx bench [WORKLOAD ...]

Measures the standard library and phalanx in turn, each time in a fresh interpreter.
A WORKLOAD is the name of one or the beginning of a name; without any, a few are taken:
"""


def ratio(workload: Workload, figure: float, standard: float) -> float:
    """How many times as good as `standard` the figure is; below 1 it is worse."""
    if workload.less_is_better:
        return standard / figure if figure else float("inf")
    return figure / standard


def _measure(module: str, name: str) -> float:
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)))
    code = (
        f"import sys; sys.path.insert(1, {folder!r})\n"
        f"import workloads; print(workloads.measure({module!r}, {name!r}))"
    )
    # Bytecode is kept, as in installed programs: not to compile phalanx anew for each figure.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, env=environment
    )
    return float(done.stdout.splitlines()[-1])


def main(args: list[str]) -> None:
    """Measure the workloads that `args` ask for and print a table."""
    if any(arg.startswith("-") for arg in args):
        print(_HELP, *(f"  {name}" for name in WORKLOADS), sep="\n")
        sys.exit(0 if set(args) <= {"-h", "--help"} else 2)
    names = [name for name in WORKLOADS if name.startswith(tuple(args or _QUICK))]
    if not names:
        sys.exit(f"python -m phalanx bench: no workload is called {' or '.join(args)}")
    print(f"{'medians of ' + str(_ROUNDS) + ' rounds':48} {'standard':>10} {'phalanx':>10}")
    for name in names:
        workload = WORKLOADS[name]
        rounds = [
            (_measure("multiprocessing", name), _measure("phalanx", name)) for _ in range(_ROUNDS)
        ]
        standard, ours = map(statistics.median, zip(*rounds))
        print(
            f"{workload.text:48} {standard:10.3g} {ours:10.3g} {workload.unit:10} "
            f"{ratio(workload, ours, standard):6.1f} times as good",
            flush=True,
        )
