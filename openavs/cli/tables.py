"""Tables as aligned plain text, equal on a terminal and in a pipe."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from openavs.cli.output import echo
from openavs.evaluation.benchmark import figure_name, figure_value, in_order, percent, protocol_name, title_of
from openavs.evaluation.compare import class_score, class_score_name
from openavs.evaluation.leaderboard import (
    FIGURE_WORDS,
    FIGURES,
    MEASURES,
    PublishedResult,
    format_published,
    group_by_kind,
    group_by_measure,
)
from openavs.utils.text import pluralize

MAX_CELL_WIDTH = 90
_PAIRED = (("score", "score"), ("f", "F"))


def print_scores(report: Mapping[str, Any]) -> None:
    """Print a report: figures by protocol (the chosen one first), silence, omissions."""
    task = report["task"]
    protocols = sorted(report["figures"], key=lambda name: name != report["protocol"])
    names = in_order({name: None for protocol in protocols for name in report["figures"][protocol]})
    rows = [[figure_name(name, task), *(_figure(report, p, name) for p in protocols)] for name in names]
    title = f"{title_of(report['benchmark'])}, {report['split']}: {_counts(report)}"
    parts = [title, table_text(["percent [95 %]", *(protocol_name(report, p) for p in protocols)], rows)]
    parts += [*_groups_text(report.get("groups") or (), task), *_silence_text(report.get("silence") or {})]
    parts += _negatives_text(report)
    parts += _worst_text(report["per_class"])
    if report.get("missing"):
        masks = pluralize(report["missing_masks"], "mask")
        parts.append(f"{pluralize(report['missing'], 'clip')} without predictions: {masks} counted as empty.")
    echo("\n\n".join(parts))


def _groups_text(groups: Sequence[Mapping[str, Any]], task: str) -> list[str]:
    """The figures of groups of clips, such as those with a shaking camera."""
    names = in_order({name: None for row in groups for name in row["figures"]})
    rows = [[figure_name(name, task), *(percent(row["figures"][name]) for row in groups)] for name in names]
    head = ["percent", *(f"{row['name']} ({pluralize(row['clips'], 'clip')})" for row in groups)]
    return [table_text(head, rows)] if rows else []


def _silence_text(silence: Mapping[str, Any]) -> list[str]:
    shown = [name for name in in_order(silence) if silence[name] or not (silence[name] is None or "_frames" in name)]
    rows = [[figure_name(name), figure_value(name, silence[name])] for name in shown]
    return [table_text(["frames without a mask", "number or percent"], rows)] if rows else []


def _negatives_text(report: Mapping[str, Any]) -> list[str]:
    """FPR with exchanged sounds, and our aggregate over them."""
    from openavs.evaluation.negatives import TITLES

    rows = [
        [TITLES[kind], *map(percent, (row["official"], row["fixed"], row["left_empty"])), row["source"]]
        for kind, row in (report.get("negatives") or {}).items()
    ]
    if not rows:
        return []
    head = ["other sounds (percent)", "FPR, official", "FPR, fixed", "frames left empty", "source"]
    value = percent(report["robustness"]["selective_miou"])
    return [table_text(head, rows), f"selective mIoU (of openavs, over these sounds): {value}"]


def _worst_text(per_class: Sequence[Mapping[str, Any]]) -> list[str]:
    """The five classes with the lowest score, among those in the truth."""
    second, title = ("map", "mAP") if per_class and "map" in per_class[0] else ("f", "F")
    classes = sorted((row for row in per_class if row["frames"]), key=lambda row: (class_score(row), row["name"]))
    rows = [
        [row["name"], f"{row['clips']:,}", f"{row['frames']:,}", *map(percent, (class_score(row), row[second]))]
        for row in classes
    ]
    head = ["worst classes (fixed)", "clips", "frames", class_score_name(per_class), title]
    return [table_text(head, rows[:5])] if rows else []


def print_published(rows: Sequence[PublishedResult], limit: int = 8, protocol: str | None = None) -> None:
    """Print published results by kind of method, best first, `limit` of each kind.

    Columns without any value are left out. For a run in a protocol, the results that were measured otherwise are apart.
    """
    groups = {"": list(rows)} if protocol is None else group_by_measure(rows, protocol)
    kinds = {key: group_by_kind(found) for key, found in groups.items()}
    listed = [row for of_group in kinds.values() for found in of_group.values() for row in found[:limit]]
    shown = [name for name in FIGURES if any(getattr(row, name) is not None for row in listed)]
    extra = ["setting"] if any(row.setting for row in listed) else []

    def heading(text: str) -> list[str]:
        return [*("" for _ in shown), text, *("" for _ in extra), "", ""]

    table: list[list[str]] = []
    for key, of_group in kinds.items():
        if key:
            table.append(heading(f"-- {MEASURES[key]} --"))
        for kind, found in of_group.items():
            table.append(heading(kind.upper()))
            table += [_published_row(row, shown, bool(extra)) for row in found[:limit]]
            if len(found) > limit:
                table.append(heading(f"... {len(found) - limit} more"))
    head = [*(FIGURE_WORDS[name] for name in shown), "method, backbone", *extra, "measured", "source"]
    echo("Published, in percent; figures that were measured differently do not compare.\n\n" + table_text(head, table))


def _published_row(row: PublishedResult, shown: Sequence[str], with_setting: bool) -> list[str]:
    values = [format_published(getattr(row, name)) for name in shown]
    setting = [row.setting] if with_setting else []
    return [*values, row.title, *setting, row.protocol, f"{row.source} [{row.confidence}]"]


def print_comparison(comparison: Mapping[str, Any], names: tuple[str, str] = ("A", "B")) -> None:
    """Print the result of `compare`: paired differences, and the classes and clips that differ most.

    Differences are the second run minus the first, in percentage points.
    """
    head = (
        f"{title_of(comparison['benchmark'])}, {comparison['split']}, "
        f"{protocol_name(comparison, comparison['protocol'])}: {pluralize(comparison['clips'], 'clip')} in both runs"
    )
    unpaired = [f"{comparison[key]:,} only in {name}" for key, name in zip(("only_a", "only_b"), names, strict=True)]
    if comparison["only_a"] or comparison["only_b"]:
        head += f" ({', '.join(unpaired)}: not compared)"
    titles = ["", *names, "difference"]
    figures = [[figure_name(name, comparison["task"]), *_pair(row)] for name, row in comparison["figures"].items()]
    paired = [_paired_row(label, comparison[key]) for key, label in _PAIRED if comparison[key] is not None]
    parts = [head, table_text(["each run's own figures", *titles[1:]], figures)]
    parts.append(
        table_text(["per clip, paired", *names, "difference [95 %]", "p", f"{names[1]} won, tied, lost"], paired)
    )
    for key, title in (("per_class", "classes that differ most"), ("differ_most", "clips that differ most")):
        rows = [[row.get("name") or row["id"], *_pair(row)] for row in comparison[key][:10] if row["difference"]]
        if rows:
            parts.append(table_text([title, *titles[1:]], rows))
    echo("\n\n".join(parts))


def table_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows below a heading, without lines, colors and wrapping."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in head:
        table.add_column(max_width=MAX_CELL_WIDTH, no_wrap=True)
    for row in (head, *rows):
        # Names come from files, so control characters are replaced.
        table.add_row(*(Text("".join(c if c.isprintable() else "?" for c in text)) for text in row))
    # The width of the terminal is not used, so that the text is the same in a pipe.
    console = Console(file=io.StringIO(), width=(MAX_CELL_WIDTH + 2) * len(head), color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(f"  {line}".rstrip() for line in capture.get().splitlines())


def _figure(report: Mapping[str, Any], protocol: str, name: str) -> str:
    figures = report["figures"][protocol]
    if name not in figures:
        return ""
    interval = (report.get("intervals") or {}).get(protocol, {}).get(name)
    return percent(figures[name]) + (f" [{percent(interval[0])}, {percent(interval[1])}]" if interval else "")


def _pair(row: Mapping[str, Any]) -> list[str]:
    return [percent(row["a"]), percent(row["b"]), _signed(row["difference"])]


def _paired_row(label: str, row: Mapping[str, Any]) -> list[str]:
    low, high = row["interval"]
    difference = f"{_signed(row['difference'])} [{_signed(low)}, {_signed(high)}]"
    counts = f"{row['wins']}, {row['ties']}, {row['losses']}"
    return [label, percent(row["a"]), percent(row["b"]), difference, _probability(row["p"]), counts]


def _signed(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.2f}"


def _probability(p: float) -> str:
    return f"{p:.4f}" if p >= 0.001 else "< 0.001"


def _counts(report: Mapping[str, Any]) -> str:
    return f"{pluralize(report['clips'], 'clip')}, {pluralize(report['frames'], 'frame')}"
