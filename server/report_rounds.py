"""The report's section on the rounds: the charts, and the same numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from common.charts import Series, bar_chart, line_chart, stacked
from common.report_parts import details, duration, score, table, whole
from server.reporting import RunReport


def rounds_section(report: RunReport) -> str:
    """Return the charts and the table over the rounds."""
    if not report.history:
        return "<p>No round was completed.</p>"
    return _charts(report) + _rounds_table(report)


def _charts(report: RunReport) -> str:
    """Return the charts over the rounds."""
    history = report.history
    rounds = [int(row["round"]) for row in history]
    sums = [sites_in(row) for row in history]
    sites = [Series(name="in the sum", values=sums)]
    missing = [max(0.0, len(report.sites) - (count or 0.0)) for count in sums]
    if any(missing):
        sites.append(Series(name="missing", values=missing, tone="missing"))
    losses = [Series(name="training", values=[row.get("train_loss") for row in history])]
    durations = stacked([_numbers(row.get("seconds_by_stage") or {}) for row in history])
    charts = [
        line_chart("Micro scores on devel", rounds, _micro(history), highest=1.0),
        *_entity_chart(rounds, history),
        line_chart("Training loss", rounds, losses),
        bar_chart("Sites in each round", rounds, sites, unit="sites"),
        bar_chart("Seconds by stage", rounds, durations, unit="s", digits=1),
        _time_table(durations),
    ]
    return f"<div class='charts'>{''.join(charts)}</div>"


def _entity_chart(rounds: Sequence[int], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the chart of the entity types, unless there is only one: that is the chart before."""
    series = _by_entity(history)
    return [line_chart("F1 by entity on devel", rounds, series, highest=1.0)] if len(series) > 1 else []


def _time_table(durations: Sequence[Series]) -> str:
    """Return where the time of all rounds went."""
    totals = [(part.name, sum(value or 0.0 for value in part.values)) for part in durations]
    whole_time = sum(seconds for _, seconds in totals)
    if not whole_time:
        return ""
    rows = [
        f"<tr><th scope='row'>{escape(name)}</th><td class='n'>{escape(duration(seconds))}</td>"
        f"<td class='n'>{100 * seconds / whole_time:.1f} %</td></tr>"
        for name, seconds in totals
    ]
    head = "<th scope='col'>Stage</th><th scope='col' class='n'>Time</th><th scope='col' class='n'>Share</th>"
    return f"<figure><figcaption>Where the time went</figcaption>{table(head, rows)}</figure>"


def _micro(history: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Return F1, precision and recall on the development set."""
    return [
        Series(name=name, values=[_devel(row, "micro", key) for row in history])
        for name, key in (("F1", "f1"), ("precision", "precision"), ("recall", "recall"))
    ]


def _by_entity(history: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Return F1 on the development set for the entity types with most support, at most 6."""
    supports: dict[str, float] = {}
    for row in history:
        for name, scores in (row.get("devel") or {}).get("per_entity", {}).items():
            supports[name] = scores["support"]
    names = sorted(supports, key=lambda name: (-supports[name], name))[:6]
    return [
        Series(name=name, values=[_devel(row, "per_entity", name, "f1") for row in history]) for name in names
    ]


def _devel(row: Mapping[str, Any], *path: str) -> float | None:
    """Return one of a row's development scores, or None where the row has none."""
    value: Any = row.get("devel") or {}
    for key in path:
        value = value.get(key, {})
    return value if isinstance(value, int | float) else None


def sites_in(row: Mapping[str, Any]) -> float | None:
    """Return how many sites a round's sum has."""
    return float(len(row["sites"])) if "sites" in row else None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the entries that are numbers, their names in words."""
    return {
        key.replace("_", " "): float(value) for key, value in values.items() if isinstance(value, int | float)
    }


def _rounds_table(report: RunReport) -> str:
    """Return the same numbers as a table."""
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("Round", lambda row: str(row["round"])),
        ("F1 on devel", lambda row: score(_devel(row, "micro", "f1"))),
        ("Training loss", lambda row: score(row.get("train_loss"))),
        ("Sites in the sum", lambda row: f"{whole(sites_in(row))} of {len(report.sites)}"),
        ("Attempts", lambda row: whole(row.get("attempts"))),
        ("Seconds", lambda row: "–" if row.get("seconds") is None else f"{row['seconds']:.1f}"),
    ]
    head = "".join(f"<th scope='col' class='n'>{name}</th>" for name, _ in columns)
    cells = (
        "".join(f"<td class='n'>{escape(cell(row))}</td>" for _, cell in columns) for row in report.history
    )
    return details("The same as a table", table(head, (f"<tr>{row}</tr>" for row in cells)))
