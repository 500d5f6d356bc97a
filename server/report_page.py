"""The report as one HTML page that opens anywhere: no script, and nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from server.charts import Series, bar_chart, line_chart, stacked
from server.report_style import STYLE
from server.reporting import RunReport, SitePrivacy

# The page cannot fetch or run anything, even if a text slipped past the escaping.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_SCORES: Final = ("precision", "recall", "f1")


def render_report(report: RunReport) -> str:
    """Return the whole page.

    Args:
        report: What to show; every text in it is escaped.
    """
    sections = [
        _header(report),
        _warnings(report.warnings),
        _tiles(report),
        _section("Entities", _entities(report)),
        _section("Rounds", _charts(report.history) + _rounds_table(report.history)),
        _section("Privacy", _privacy(report)),
        _section("Secure aggregation", _secure_aggregation(report)),
        _section("How to repeat it", _repeat(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.name)} · fedward report</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    """Return a titled section."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _header(report: RunReport) -> str:
    """Return the page's head: what ran, how far, when."""
    done = len(report.history)
    facts = [
        f"{_count(len(report.sites), 'site')}",
        f"{done} of {_count(report.planned_rounds, 'round')}",
        _duration(report.seconds),
        f"finished {report.finished_at}",
    ]
    told = " · ".join(escape(fact) for fact in facts)
    title = f"<p class='brand'>fedward report</p><h1>{escape(report.name)}</h1>"
    return f"<header>{title}<p class='facts'>{told}</p></header>\n"


def _warnings(warnings: Sequence[str]) -> str:
    """Return the warnings, or nothing."""
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f"<aside class='warnings'><strong>Read this first</strong><ul>{items}</ul></aside>\n"


def _tiles(report: RunReport) -> str:
    """Return the headline numbers."""
    micro, macro = report.evaluation["micro"], report.evaluation.get("macro", {})
    tiles = [
        ("hero", "Micro F1", _score(micro["f1"]), f"strict, on {report.evaluated_on}"),
        ("", "Precision", _score(micro["precision"]), "micro"),
        ("", "Recall", _score(micro["recall"]), "micro"),
        (
            "",
            "Macro F1",
            _score(macro.get("f1")),
            _count(len(report.evaluation["per_entity"]), "entity type"),
        ),
        ("", "Privacy", *_privacy_tile(report)),
        ("", "Secure aggregation", "on" if report.secure_aggregation else "off", _opened(report)),
    ]
    cells = (
        f"<div class='tile {kind}'><dt>{escape(name)}</dt><dd><b>{escape(value)}</b>"
        f"<small>{escape(note)}</small></dd></div>"
        for kind, name, value, note in tiles
    )
    return f"<dl class='tiles'>{''.join(cells)}</dl>\n"


def _privacy_tile(report: RunReport) -> tuple[str, str]:
    """Return the value and the note of the privacy tile."""
    if report.epsilon is not None:
        worst = max(report.privacy, key=lambda entry: entry.epsilon)
        return f"ε {worst.epsilon:.2f}", f"δ {_small(worst.delta)}, per {worst.unit}"
    if report.privacy:
        return "in part", f"{len(report.privacy)} of {_count(len(report.sites), 'site')}"
    return "not private", "no differential privacy"


def _opened(report: RunReport) -> str:
    """Return what the server could see of the updates."""
    return "the server opened only sums" if report.secure_aggregation else "the server saw every update"


def _entities(report: RunReport) -> str:
    """Return the tables of scores by entity type and by tag."""
    per_entity: Mapping[str, Mapping[str, float]] = report.evaluation["per_entity"]
    names = sorted(per_entity, key=lambda name: (-per_entity[name]["support"], name))
    rows = [_scores_row(name, per_entity[name]) for name in names]
    for average in ("micro", "macro", "weighted"):
        if average in report.evaluation:
            rows.append(_scores_row(f"{average} average", report.evaluation[average], kind="average"))
    table = _scores_table("Entity", rows)
    note = "<p class='note'>Strict: type and both boundaries of a mention must be right.</p>"
    tokens: Mapping[str, Mapping[str, float]] = report.evaluation.get("token", {})
    if not tokens:
        return table + note
    token_table = _scores_table("Tag", [_scores_row(tag, scores) for tag, scores in tokens.items()])
    return table + note + _details("By token, O included", token_table)


def _scores_table(first: str, rows: Iterable[str]) -> str:
    """Return a table of precision, recall, F1 and support."""
    heads = f"<th scope='col'>{first}</th>" + "".join(
        f"<th scope='col' class='n'>{head}</th>" for head in ("Precision", "Recall", "F1")
    )
    bar = "<th scope='col' class='b'><span class='unseen'>F1 as a bar</span></th>"
    return _table(f"{heads}{bar}<th scope='col' class='n'>Support</th>", rows)


def _table(heads: str, rows: Iterable[str]) -> str:
    """Return a table that scrolls by itself where the page is narrow."""
    body = "".join(rows)
    return f"<div class='wide'><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _scores_row(name: str, scores: Mapping[str, float], *, kind: str = "") -> str:
    """Return one row of scores, with the F1 also as a bar."""
    cells = "".join(f"<td class='n'>{_score(scores[key])}</td>" for key in _SCORES)
    share = min(1.0, max(0.0, scores["f1"])) * 100
    bar = f"<td class='b'><span class='track'><span style='width:{share:.1f}%'></span></span></td>"
    support = f"<td class='n'>{int(scores['support']):,}</td>"
    return f"<tr class='{kind}'><th scope='row'>{escape(name)}</th>{cells}{bar}{support}</tr>"


def _charts(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the four charts over the rounds."""
    rounds = [int(row["round"]) for row in history]
    scores = _series(history, {"F1": "micro_f1", "precision": "micro_precision", "recall": "micro_recall"})
    losses = _series(history, {"training": "train_loss", "devel": "devel_loss"})
    present = [float(row.get("participants") or 0) for row in history]
    missing = [
        max(0.0, float(row.get("invited") or 0) - here) for row, here in zip(history, present, strict=True)
    ]
    sites = [Series(name="in the sum", values=present)]
    if any(missing):
        sites.append(Series(name="missing", values=missing))
    durations = stacked([_numbers(row.get("durations") or {}) for row in history])
    charts = [
        line_chart("Strict micro scores", rounds, scores, limits=(0.0, 1.0)),
        line_chart("Loss", rounds, losses, limits=(0.0, float("inf"))),
        bar_chart("Sites in each round", rounds, sites, unit="sites"),
        bar_chart("Seconds by stage", rounds, durations, unit="s", digits=1),
    ]
    return f"<div class='charts'>{''.join(charts)}</div>"


def _series(history: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> list[Series]:
    """Return the series whose key some row has."""
    found = []
    for name, key in keys.items():
        values = [row.get(key) for row in history]
        if any(value is not None for value in values):
            found.append(Series(name=name, values=values))
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the entries that are numbers."""
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def _rounds_table(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the same numbers as a table."""
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("Round", lambda row: str(row["round"])),
        ("F1", lambda row: _score(row.get("micro_f1"))),
        ("Loss", lambda row: _score(row.get("train_loss"))),
        ("Sites", _sites_of),
        ("Cohort", lambda row: _whole(row.get("cohort"))),
        ("Seconds", lambda row: f"{sum(_numbers(row.get('durations') or {}).values()):.1f}"),
    ]
    head = "".join(f"<th scope='col' class='n'>{name}</th>" for name, _ in columns)
    cells = ("".join(f"<td class='n'>{escape(cell(row))}</td>" for _, cell in columns) for row in history)
    rows = (f"<tr>{row}</tr>" for row in cells)
    return _details("The same as a table", _table(head, rows))


def _sites_of(row: Mapping[str, Any]) -> str:
    """Return how many of the invited sites are in the round's sum."""
    if row.get("invited") is None:
        return _whole(row.get("participants"))
    return f"{_whole(row.get('participants'))} of {_whole(row['invited'])}"


def _privacy(report: RunReport) -> str:
    """Return what was promised about the records, site by site."""
    if not report.privacy:
        return (
            "<p>This run was <strong>not private</strong>: the sites trained without differential privacy, "
            "so the model may reveal what single records contain. Treat it as you treat the records.</p>"
        )
    by_site = {entry.site: entry for entry in report.privacy}
    names = [*report.sites, *(name for name in by_site if name not in report.sites)]
    rows = [_privacy_row(name, by_site.get(name)) for name in names]
    heads = (
        "<th scope='col'>Site</th><th scope='col' class='n'>ε</th><th scope='col' class='n'>δ</th>"
        + "".join(f"<th scope='col'>{name}</th>" for name in ("Unit", "Neighbours", "Mode"))
    )
    return (
        _table(heads, rows)
        + "<p class='note'>ε is an upper bound on what the run's messages reveal about one unit, at that δ "
        "and for neighbours as named. The timing and the failures of sites are outside it.</p>"
    )


def _privacy_row(site: str, entry: SitePrivacy | None) -> str:
    """Return one site's row."""
    if entry is None:
        return (
            f"<tr><th scope='row'>{escape(site)}</th><td colspan='5'><strong>not private</strong></td></tr>"
        )
    numbers = f"<td class='n'>{entry.epsilon:.3f}</td><td class='n'>{_small(entry.delta)}</td>"
    words = "".join(f"<td>{escape(word)}</td>" for word in (entry.unit, entry.relation, entry.mode))
    return f"<tr><th scope='row'>{escape(site)}</th>{numbers}{words}</tr>"


def _secure_aggregation(report: RunReport) -> str:
    """Return whether single updates were hidden from the server, and among how many."""
    if not report.secure_aggregation:
        return "<p>It was <strong>off</strong>: the server saw every site's update by itself.</p>"
    told = [
        "It was <strong>on</strong>: the server opened the sum of a round and nothing else.",
        _span(report.history, "cohort", "shared keys"),
        _span(report.history, "participants", "were in the sum"),
        "" if report.threshold is None else f"A sum opens with at least {_count(report.threshold, 'site')}.",
    ]
    return f"<p>{' '.join(filter(None, told))}</p>"


def _span(history: Sequence[Mapping[str, Any]], key: str, what: str) -> str:
    """Say between which numbers a count of sites lay."""
    counts = [int(row[key]) for row in history if row.get(key) is not None]
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    number = f"{_count(low, 'site')}" if low == high else f"Between {low} and {high} sites"
    return f"{number} {what} in each round."


def _repeat(report: RunReport) -> str:
    """Return the plan, its hash, the seed and the versions."""
    facts = {"Plan hash": report.plan_hash, "Run id": report.run_id, "Seed": str(report.seed)}
    rows = "".join(f"<dt>{name}</dt><dd><code>{escape(value)}</code></dd>" for name, value in facts.items())
    versions = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(version)}</code></dd>"
        for name, version in report.versions.items()
    )
    return (
        f"<dl class='pairs'>{rows}</dl>"
        + _details("The plan", f"<pre>{escape(report.plan_text)}</pre>")
        + (_details("Versions", f"<dl class='pairs'>{versions}</dl>") if versions else "")
    )


def _details(summary: str, content: str) -> str:
    """Return content that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _score(value: float | None) -> str:
    """Return a score, or a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def _whole(value: float | None) -> str:
    """Return a count, or a dash where there is none."""
    return "–" if value is None else f"{int(value):,}"


def _count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _small(value: float) -> str:
    """Return a small probability as people write it."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    digits = mantissa.removesuffix(".0")
    power = f"10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return power if digits == "1" else f"{digits}·{power}"


def _duration(seconds: float) -> str:
    """Return a time as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
