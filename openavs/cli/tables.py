"""The tables that score, evaluate and compare print: plain aligned text, the same on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openavs.benchmarks.wording import figure_name, in_order, percent, protocol_words, title_of

LONGEST_CELL = 60


def print_scores(report: Mapping[str, Any]) -> None:
    """Prints `Scores.to_dict()` or a report.json: figures with intervals in both protocols, silence, omissions."""
    print(scores_text(report))


def scores_text(report: Mapping[str, Any]) -> str:
    """What `print_scores` prints; the protocol that was asked for comes first."""
    task = report["task"]
    asked = report["protocol"]
    protocols = sorted(report["figures"], key=lambda name: name != asked)
    names = in_order({name: None for protocol in protocols for name in report["figures"][protocol]})
    rows = [[figure_name(name, task), *(_figure(report, p, name) for p in protocols)] for name in names]
    title = f"{title_of(report['benchmark'])}, {report['split']}: {_counts(report)}"
    parts = [title, columns(["percent [95 %]", *(protocol_words(report, p) for p in protocols)], rows)]
    silence = {name: value for name, value in (report.get("silence") or {}).items() if value is not None}
    if silence:
        parts.append(columns(["silence", ""], [[figure_name(n), percent(silence[n])] for n in in_order(silence)]))
    if report.get("missing"):
        parts.append(f"{report['missing']} clips had no prediction and count as empty.")
    return "\n\n".join(parts)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a heading, the first column to the left and the others as wide as they need to be."""
    table = [[_cell(text) for text in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _figure(report: Mapping[str, Any], protocol: str, name: str) -> str:
    figures = report["figures"][protocol]
    if name not in figures:
        return ""
    interval = (report.get("intervals") or {}).get(protocol, {}).get(name)
    return percent(figures[name]) + (f" [{percent(interval[0])}, {percent(interval[1])}]" if interval else "")


def _counts(report: Mapping[str, Any]) -> str:
    return f"{report['clips']:,} clips, {report['frames']:,} frames"


def _cell(text: str) -> str:
    """One line that cannot move the cursor: names come from files."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= LONGEST_CELL else line[: LONGEST_CELL - 1] + "…"
