"""A run as a table in Markdown, and as a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["line", "plot", "ratio", "table"]

_STANDARD = "multiprocessing"


def _short(value: float) -> str:
    for limit, unit in ((1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def ratio(row: dict[str, Any], rival: str) -> float | None:
    """How many times as good as the standard library; None without a figure."""
    figures = row["figures"]
    if rival not in figures or _STANDARD not in figures:
        return None
    ours, standard = median(figures[rival]), median(figures[_STANDARD])
    if row["less_is_better"]:
        ours, standard = standard, ours
    return ours / standard if standard > 0 else None


def _best_peer(row: dict[str, Any]) -> str | None:
    peers = [r for r in row["figures"] if r not in (_STANDARD, "phalanx")]
    return max(peers, key=lambda rival: ratio(row, rival) or 0, default=None)


def _spread(figures: list[float]) -> str:
    """The half of the range, in percent of the median."""
    middle = median(figures)
    return f"± {(max(figures) - min(figures)) / 2 / middle * 100:.0f} %" if middle else ""


def _verdict(row: dict[str, Any]) -> str:
    own, goal = ratio(row, "phalanx"), row["goal"]
    if goal is None or own is None:
        return "–"
    # Parity cannot be told from noise of five percent.
    reached = own >= (goal if goal != 1 else 0.95)
    return f"{goal:g}: " + ("reached" if reached else "missed")


def line(row: dict[str, Any]) -> str:
    """One row for the terminal."""
    own = ratio(row, "phalanx")
    parts = [f"{row['text']:46}"]
    parts += [f"{r} {_short(median(f))}" for r, f in row["figures"].items()]
    ours = "–" if own is None else f"{own:.2f}"
    lines = [" | ".join([*parts, f"{row['unit']} | {ours} times | {_verdict(row)}"])]
    lines += [f"    {rival}: {why}" for rival, why in row["failures"].items()]
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """The whole run, with machine, versions and method."""
    machine = result["machine"]
    versions = ", ".join(f"{rival} {version}" for rival, version in result["versions"].items())
    text = [
        f"# Benchmarks of {result['day']}",
        "",
        f"Machine: {machine['processor']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, "
        f"Python {machine['python']}; load average at the end {machine['load']:.1f}.",
        f"Versions: {versions}.",
        "",
        f"Method: medians of {result['rounds']} rounds; in a round every rival is measured once, "
        "each in a fresh interpreter, one after another. Children are forked where nothing else "
        'is said; bytecode is cached; "cores free" only means that the benchmark itself puts no '
        "load beside the workload. ± is half the range of the figures (it says nothing with one "
        "round). Ratios are to the standard library in the same run, above 1 is better, below 1 "
        "worse; a goal of 1 (parity) counts as reached from 0.95.",
        "",
        "| workload | unit | standard library | phalanx | ratio | goal | best peer |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in result["rows"]:
        cells = []
        for rival in (_STANDARD, "phalanx"):
            figures = row["figures"].get(rival)
            cells.append(f"{_short(median(figures))} {_spread(figures)}" if figures else "–")
        own, peer = ratio(row, "phalanx"), _best_peer(row)
        best = f"{peer} {_ratio_text(ratio(row, peer))}" if peer else "–"
        shown = _ratio_text(own)
        if own is not None and own < 1:
            shown = f"**{shown}**"
        text.append(
            f"| {row['text']} | {row['unit']} | {cells[0]} | {cells[1]} | {shown} | "
            f"{_verdict(row)} | {best} |"
        )
    failures = [
        f"* {row['name']}, {rival}: {why}"
        for row in result["rows"]
        for rival, why in row["failures"].items()
    ]
    if failures:
        text += ["", "No figure:", "", *failures]
    return "\n".join(text) + "\n"


def _ratio_text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def plot(result: dict[str, Any], path: Path) -> None:
    """Ratios to the standard library on a logarithmic axis: phalanx, the best peer, the goal."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "phalanx"
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text, not as outlines
    from matplotlib import pyplot

    rows = [row for row in result["rows"] if ratio(row, "phalanx")][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.26 * len(rows) + 1.2))
    for y, row in enumerate(rows):
        own = ratio(row, "phalanx") or 1
        axes.barh(y, own - 1, left=1, height=0.6, color="#2a6f97" if own >= 1 else "#c1121f")
        peer = _best_peer(row)
        if peer and (value := ratio(row, peer)):
            axes.plot(value, y, "o", color="#f4a261", markersize=5)
        if row["goal"]:
            axes.plot(row["goal"], y, "|", color="black", markersize=9)
    axes.set_yticks(range(len(rows)), [row["text"] for row in rows], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(
        "times the standard library (blue: phalanx, red: behind; dot: best peer; |: goal)"
    )
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.margins(y=0.01)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
