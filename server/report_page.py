"""The report as one HTML page that opens anywhere: no script, and nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from common.accounting import Epsilon
from common.report_parts import count, details, duration, score, small, table
from common.report_style import STYLE
from server.report_rounds import rounds_section, sites_in
from server.reporting import RunReport

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
        _section("Rounds", rounds_section(report)),
        _section("Privacy", _privacy(report)),
        _warmup(report),
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
        f"{count(len(report.sites), 'site')}",
        f"{done} of {count(report.planned_rounds, 'round')}",
        duration(report.seconds),
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
    micro, macro = report.evaluation.get("micro", {}), report.evaluation.get("macro", {})
    types = len(report.evaluation.get("per_entity", {}))
    where = f"strict, on {report.evaluated_on}" if micro else "there was no test set"
    if micro and report.chosen_round is not None:
        where += f", round {report.chosen_round}"
    tiles = [
        ("hero", "Micro F1", score(micro.get("f1")), where),
        ("", "Precision", score(micro.get("precision")), "micro"),
        ("", "Recall", score(micro.get("recall")), "micro"),
        ("", "Macro F1", score(macro.get("f1")), count(types, "entity type")),
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
    weakest = report.weakest
    if weakest is not None:
        return f"ε {_epsilon(weakest)}", f"δ {small(weakest.delta)}, per {weakest.unit}"
    if report.privacy:
        return "in part", f"{len(report.privacy)} of {count(len(report.sites), 'site')}"
    return "not private", "no differential privacy"


def _opened(report: RunReport) -> str:
    """Return what the server could see of the updates."""
    return "the server opened only sums" if report.secure_aggregation else "the server saw every update"


def _entities(report: RunReport) -> str:
    """Return the tables of scores by entity type and by tag."""
    if not report.evaluation:
        return "<p>The run had no test set, so its model was not evaluated.</p>"
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
    return table + note + details("By token, O included", token_table)


def _scores_table(first: str, rows: Iterable[str]) -> str:
    """Return a table of precision, recall, F1 and support."""
    heads = f"<th scope='col'>{first}</th>" + "".join(
        f"<th scope='col' class='n'>{head}</th>" for head in ("Precision", "Recall", "F1")
    )
    bar = "<th scope='col' class='b'><span class='unseen'>F1 as a bar</span></th>"
    return table(f"{heads}{bar}<th scope='col' class='n'>Support</th>", rows)


def _scores_row(name: str, scores: Mapping[str, float], *, kind: str = "") -> str:
    """Return one row of scores, with the F1 also as a bar."""
    cells = "".join(f"<td class='n'>{score(scores[key])}</td>" for key in _SCORES)
    share = min(1.0, max(0.0, scores["f1"])) * 100
    bar = f"<td class='b'><span class='track'><span style='width:{share:.1f}%'></span></span></td>"
    support = f"<td class='n'>{int(scores['support']):,}</td>"
    return f"<tr class='{kind}'><th scope='row'>{escape(name)}</th>{cells}{bar}{support}</tr>"


def _privacy(report: RunReport) -> str:
    """Return what was promised about the records, site by site."""
    if not report.privacy:
        return (
            "<p>This run was <strong>not private</strong>: the sites trained without differential privacy, "
            "so the model may reveal what single records contain. Treat it as you treat the records.</p>"
        )
    names = [*report.sites, *(name for name in report.privacy if name not in report.sites)]
    rows = [_privacy_row(name, report.privacy.get(name)) for name in names]
    heads = (
        "<th scope='col'>Site</th><th scope='col' class='n'>ε</th><th scope='col' class='n'>δ</th>"
        + "".join(f"<th scope='col'>{name}</th>" for name in ("Unit", "Neighbours", "Bounded by"))
    )
    note = (
        "ε is an upper bound on what the run's messages reveal about one unit of a site, at that δ and for "
        f"neighbours as named.{_across(report)} The timing and the failures of sites are outside it."
    )
    return f"{table(heads, rows)}<p class='note'>{note}</p>{_composition(report)}"


def _composition(report: RunReport) -> str:
    """Return what each site's bound composes."""
    told = [
        f"{escape(site)}: {count(int(parts['steps']), 'step')} in {count(int(parts['trainings']), 'training')} "
        f"at sampling rate {parts['q']:g} with noise multiplier {parts['noise_multiplier']:g}"
        for site, parts in report.composition.items()
        if site in report.privacy
    ]
    return f"<p class='note'>Composed so far: {'; '.join(told)}.</p>" if told else ""


def _warmup(report: RunReport) -> str:
    """Return what the model had learnt from public notes before any site trained."""
    if report.warmup is None:
        return ""
    facts = report.warmup
    scores = ", ".join(
        f"{name} {score(facts[key])}"
        for name, key in (("development", "devel_micro_f1"), ("test", "test_micro_f1"))
        if key in facts
    )
    alone = f" Micro F1 after the warm-up alone: {scores}." if scores else ""
    what = "the head" if facts["head_only"] else "everything that the plan trains"
    return _section(
        "Public warm-up",
        f"<p>Before round 1 the server trained {what} for {count(facts['epochs'], 'epoch')} on "
        f"{count(facts['notes'], 'public note')} ({escape(str(facts['source']))}), which cost no site any "
        f"privacy.{alone}</p>",
    )


def _across(report: RunReport) -> str:
    """Return the claim for somebody with records at every site, where there is one."""
    if report.weakest is None or len(report.privacy) < 2:
        return ""
    both = report.across_sites
    if both is None:
        return " The sites' units differ, so nothing is claimed for somebody with records at several."
    return (
        " For somebody whose records lie at every site the bounds add up: "
        f"ε {_epsilon(both)} at δ {small(both.delta)}."
    )


def _privacy_row(site: str, claim: Epsilon | None) -> str:
    """Return one site's row."""
    if claim is None:
        return (
            f"<tr><th scope='row'>{escape(site)}</th><td colspan='5'><strong>not private</strong></td></tr>"
        )
    numbers = f"<td class='n'>{_epsilon(claim)}</td><td class='n'>{small(claim.delta)}</td>"
    words = "".join(f"<td>{escape(word)}</td>" for word in (claim.unit, claim.neighbouring, claim.method))
    return f"<tr><th scope='row'>{escape(site)}</th>{numbers}{words}</tr>"


def _epsilon(claim: Epsilon) -> str:
    """Return an epsilon rounded up, so that the page never claims more privacy than there is."""
    return f"{math.ceil(claim.epsilon * 100) / 100:.2f}" if math.isfinite(claim.epsilon) else "∞"


def _secure_aggregation(report: RunReport) -> str:
    """Return whether single updates were hidden from the server, and among how many."""
    if not report.secure_aggregation:
        return "<p>It was <strong>off</strong>: the server saw every site's update by itself.</p>"
    told = [
        "It was <strong>on</strong>: the server opened the sum of a round and nothing else.",
        _span([row.get("cohort") for row in report.history], "shared keys"),
        _span([sites_in(row) for row in report.history], "were in the sum"),
        "" if report.threshold is None else f"A sum opens with at least {count(report.threshold, 'site')}.",
    ]
    return f"<p>{' '.join(filter(None, told))}</p>"


def _span(values: Sequence[float | None], what: str) -> str:
    """Say between which numbers a count of sites lay."""
    counts = [int(value) for value in values if value is not None]
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    number = count(low, "site") if low == high else f"Between {low} and {high} sites"
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
        + details("The plan", f"<pre>{escape(report.plan_text)}</pre>")
        + (details("Versions", f"<dl class='pairs'>{versions}</dl>") if versions else "")
    )
