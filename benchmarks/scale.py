"""How cost grows with size: what `make bench-scale` runs.

Each point of a curve is of a fresh interpreter; the standard library and phalanx take turns. Who
needs longer than the limit for a point, or would by its last one, is not asked for larger ones.

A child measures one point: `python scale.py RIVAL CURVE SIZE`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from curves import CURVES, Curve
from run import describe_machine

HERE = Path(__file__).parent
RIVALS = ("multiprocessing", "phalanx")
_COLOURS = {"multiprocessing": "#f4a261", "phalanx": "#2a6f97"}
_LIMIT = 60.0  # seconds for one point


def _measure_here(rival: str, curve: str, size: int) -> None:
    mp = importlib.import_module(rival).get_context("fork")
    seconds = CURVES[curve].run(mp, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, peak)


def _measure(rival: str, curve: Curve, size: int) -> tuple[float, float] | None:
    """Seconds, and the MiB that the measuring process had at most; None if it takes too long."""
    child = subprocess.Popen(
        [sys.executable, __file__, rival, curve.name, str(size)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = child.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)  # what it may have left behind
        except ProcessLookupError:
            pass
        child.wait()
    if child.returncode != 0 or not out:
        return None
    seconds, peak = map(float, out.split())
    return seconds, peak / 1024


def _enough_memory(rival: str, curve: Curve, size: int) -> bool:
    """Whether the machine has room for all copies of a message, with a margin."""
    if curve.name != "message":
        return True
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # The sender's, one under way, ours; the standard library pickles it, and joins its pieces.
    copies = 3 if rival == "phalanx" else 6
    return (copies + 1) * (size << 20) < free


def _run_curve(curve: Curve, rounds: int, largest: int | None) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    last: dict[str, tuple[int, float]] = {}  # size and seconds of each rival's last point
    for size in curve.sizes:
        if largest and size > largest:
            break
        point: dict[str, Any] = {"size": size, "seconds": {}, "peak": {}}
        asked = [
            rival
            for rival in RIVALS
            if (rival not in last or last[rival][1] * size / last[rival][0] < _LIMIT)
            and _enough_memory(rival, curve, size)
        ]
        figures: dict[str, list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for rival in asked:
                figure = _measure(rival, curve, size)
                if figure is not None:
                    figures.setdefault(rival, []).append(figure)
        for rival in asked:
            if rival in figures:
                point["seconds"][rival] = median(seconds for seconds, _ in figures[rival])
                point["peak"][rival] = median(peak for _, peak in figures[rival])
                last[rival] = size, point["seconds"][rival]
            else:
                last[rival] = size, _LIMIT
        points.append(point)
        print(f"  {size:>10,} {curve.of}", *_cells(point), sep="  ", flush=True)
    return points


def _each(point: dict[str, Any], rival: str) -> str:
    seconds = point["seconds"].get(rival)
    if seconds is None:
        return "–"
    each = seconds / point["size"]
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if each * factor >= 1:
            return f"{each * factor:.3g} {unit}"
    return f"{each * 1e9:.3g} ns"


def _peak(point: dict[str, Any], rival: str) -> str:
    peak = point["peak"].get(rival)
    return "–" if peak is None else f"{peak:,.0f} MiB"


def _cells(point: dict[str, Any]) -> list[str]:
    return [_each(point, r) for r in RIVALS] + [_peak(point, r) for r in RIVALS]


def table(result: dict[str, Any]) -> str:
    """All curves in Markdown."""
    machine = result["machine"]
    text = [
        f"# How cost grows: {result['day']}",
        "",
        f"Machine: {machine['processor']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, "
        f"Python {machine['python']}; load average at the end {machine['load']:.1f}.",
        "",
        f"Method: medians of {result['rounds']} rounds, each point in a fresh interpreter, start "
        "method fork. The cost is that of one item, process or MiB: where it stays the same from "
        "line to line, the whole grows linearly. The memory is what the measuring process had at "
        f"most, pages that it shares included. – : it would take longer than {_LIMIT:g} s, or "
        "more memory than there is.",
    ]
    for row in result["curves"]:
        text += [
            "",
            f"## {row['text']}",
            "",
            f"| size | each {row['of']}: standard library | phalanx | memory: standard library "
            "| phalanx |",
            "| ---: | ---: | ---: | ---: | ---: |",
        ]
        text += [
            f"| {point['size']:,} | " + " | ".join(_cells(point)) + " |" for point in row["points"]
        ]
    return "\n".join(text) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """The cost of one over the size, both logarithmic: a level line is linear growth."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "phalanx"
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text, not as outlines
    from matplotlib import pyplot

    rows = result["curves"]
    lines = (len(rows) + 1) // 2
    figure, grid = pyplot.subplots(lines, 2, figsize=(9, 2.6 * lines), squeeze=False)
    for axes, row in zip(grid.flat, rows):
        for rival in RIVALS:
            points = [p for p in row["points"] if rival in p["seconds"]]
            sizes = [p["size"] for p in points]
            costs = [p["seconds"][rival] / p["size"] * 1e6 for p in points]
            axes.plot(sizes, costs, "o-", markersize=4, color=_COLOURS[rival], label=rival)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(row["text"], fontsize=8)
        axes.set_ylabel(f"µs each {row['of']}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(which="both", alpha=0.2)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_visible(False)
    grid.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names of curves, by commas")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--largest", type=int, help="the largest size to try")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()

    wanted = options.only.split(",") if options.only else list(CURVES)
    rows = []
    for name in wanted:
        curve = CURVES[name]
        print(curve.text)
        points = _run_curve(curve, options.rounds, options.largest)
        if not points:
            parser.error(f"{name} has no size up to {options.largest}")
        rows.append({"name": name, "text": curve.text, "of": curve.of, "points": points})
    result = {
        "machine": describe_machine(),
        "rounds": options.rounds,
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "curves": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scale.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "scale.md").write_text(table(result))
    plot(result, options.out / "scale.svg")
    print(f"written: {options.out / 'scale'}.json, .md and .svg")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in RIVALS:
        _measure_here(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
