"""Measure every workload with every rival: what `make bench` runs.

Each figure is of a fresh interpreter. The rivals take turns within a round, so that what else the
machine does meets all of them; the figures of the rounds are kept, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import report
from rivals import RIVALS

HERE = Path(__file__).parent
_LIMIT = 60  # seconds; who takes longer for one figure has none


def workloads_folder() -> str:
    """The folder of the module `workloads`, in the package that would be imported."""
    spec = find_spec("phalanx")
    assert spec is not None and spec.origin is not None, "phalanx is not installed"
    return str(Path(spec.origin).parent / "_bench")


def _installed() -> dict[str, str]:
    versions = {}
    for rival, (_, distribution) in RIVALS.items():
        try:
            found = metadata.version(distribution) if distribution else platform.python_version()
        except metadata.PackageNotFoundError:
            found = "of this tree" if rival == "phalanx" else None
        if found:
            versions[rival] = found
    return versions


def describe_machine() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return {
        "processor": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def _measure(rival: str, name: str) -> float | str:
    """The figure, or why there is none."""
    # Bytecode is kept, as in installed programs: not to compile phalanx anew for each figure.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.Popen(
        [sys.executable, HERE / "child.py", workloads_folder(), rival, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, errors = child.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        out, errors = "", f"no figure within {_LIMIT} seconds"
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)  # what it may have left behind
        except ProcessLookupError:
            pass
        child.wait()
    try:
        return float(out.splitlines()[-1])
    except (IndexError, ValueError):
        return errors.strip().splitlines()[-1] if errors.strip() else "it ended without a figure"


def main() -> None:
    sys.path.insert(1, workloads_folder())
    import workloads

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="beginnings of names, or groups, by commas")
    parser.add_argument("--rivals", default="", help="names, by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()

    versions = _installed()
    if options.rivals:
        versions = {r: v for r, v in versions.items() if r in options.rivals.split(",")}
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    chosen = [
        w for w in workloads.WORKLOADS.values() if w.name.startswith(wanted) or w.group in wanted
    ]
    if not chosen:
        parser.error(f"no workload is called {options.only!r}")
    started = time.time()
    rows = []
    for workload in chosen:
        rivals = [r for r in versions if RIVALS[r][0] is None or workload.group in RIVALS[r][0]]
        figures: dict[str, list[float]] = {}
        failures: dict[str, str] = {}
        for _ in range(options.rounds):
            for rival in rivals:
                if rival in failures:
                    continue
                result = _measure(rival, workload.name)
                if isinstance(result, str):
                    failures[rival] = result
                    figures.pop(rival, None)
                else:
                    figures.setdefault(rival, []).append(result)
        row = {
            "name": workload.name,
            "group": workload.group,
            "text": workload.text,
            "unit": workload.unit,
            "less_is_better": workload.less_is_better,
            "goal": workload.goal,
            "figures": figures,
            "failures": failures,
        }
        rows.append(row)
        print(report.line(row), flush=True)
    result = {
        "machine": describe_machine(),
        "versions": versions,
        "rounds": options.rounds,
        "day": time.strftime("%Y-%m-%d", time.gmtime(started)),
        "minutes": round((time.time() - started) / 60, 1),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "all" if not options.only else options.only.replace(",", "-")
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(report.table(result))
    report.plot(result, options.out / f"{name}.svg")
    print(f"written: {options.out / name}.json, .md and .svg")


if __name__ == "__main__":
    main()
