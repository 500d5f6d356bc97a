"""A site's quality report as one HTML page that opens anywhere: no script, and nothing is fetched.

It quotes the notes where labels look wrong, escaped like every text: the page is for the site's own people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from client.quality import QualityReport
from client.quality_export import THRESHOLD
from client.quality_labels import Suspicion
from client.quality_style import STYLE as EXTRA_STYLE
from common.charts import Series, bar_chart, line_chart
from common.report_parts import count, details, small, table
from common.report_style import STYLE

# The page cannot fetch or run anything, even if a text slipped past the escaping.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_SHOWN: Final = 15
_FOLDED: Final = 85
_MOST_BARS: Final = 14


def render_quality(report: QualityReport, *, others: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the page.

    Args:
        report: What to show.
        others: Released exports of other sites, to be laid beside this one.
    """
    facts = report.facts
    sections = [
        _header(report),
        "<p class='stays'>This page quotes records. It stays at the site (file mode 0600); what may leave is the "
        f"export, which needs a release and withholds cells below {THRESHOLD}.</p>",
        _tiles(facts),
        _section("Sizes and lengths", _sizes(facts)),
        _section("Labels", _labels(facts, others)),
        _section("Labels that look wrong", _suspicions(report)),
        _section("Encoder", _encoder(facts["encoder"])),
        _section("Duplicates and leakage", _copies(facts)),
        _section("Units", _units(facts)),
        _section("What privacy the data supports", _privacy(facts["privacy"])),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.site)} · fedward quality report</title>\n"
        f"<style>{STYLE}{EXTRA_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    """Return a titled section."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _header(report: QualityReport) -> str:
    """Return the page's head."""
    splits = report.facts["splits"]
    told = " · ".join(escape(f"{name} {count(part['notes'], 'note')}") for name, part in splits.items())
    title = f"<p class='brand'>fedward quality report</p><h1>{escape(report.site)}</h1>"
    return f"<header>{title}<p class='facts'>{told}</p></header>\n"


def _tiles(facts: Mapping[str, Any]) -> str:
    """Return the headline numbers."""
    splits = facts["splits"].values()
    notes = sum(part["notes"] for part in splits)
    copies = sum(one["exact"] + one["near"] for one in facts["duplicates"].values())
    leaks = sum(one["notes"] for one in facts["leakage"].values())
    largest = facts["privacy"][-1]
    tiles = [
        ("hero", "Notes", f"{notes:,}", f"{sum(part['words'] for part in splits):,} words"),
        (
            "",
            "Mentions",
            f"{sum(part['mentions'] for part in splits):,}",
            count(len(facts["entity_types"]), "type"),
        ),
        ("", "Look wrong", f"{facts['label_check']['candidates']:,}", "label candidates"),
        ("", "Repeated", f"{copies:,}", "exact or near copies"),
        ("", "Leaked", f"{leaks:,}", "notes also in an earlier split"),
        ("", "Pieces a word", f"{facts['encoder']['pieces_per_word']:.2f}", "of the plan's encoder"),
        ("", "Largest unit", f"{largest['units']:,}", f"{largest['unit']}s in train"),
    ]
    cells = (
        f"<div class='tile {kind}'><dt>{escape(name)}</dt><dd><b>{escape(value)}</b>"
        f"<small>{escape(note)}</small></dd></div>"
        for kind, name, value, note in tiles
    )
    return f"<dl class='tiles'>{''.join(cells)}</dl>\n"


def _sizes(facts: Mapping[str, Any]) -> str:
    """Return the splits as a table and the notes' lengths as a chart."""
    rows = [
        _row(
            name,
            f"{part['notes']:,}",
            f"{part['words']:,}",
            f"{part['mentions']:,}",
            f"{part['notes_without_mentions']:,}",
            " / ".join(f"{value:.0f}" for value in part["words_percentiles"].values()),
            f"{part['spans_widened']:,}",
            f"{part['spans_lost']:,}",
        )
        for name, part in facts["splits"].items()
    ]
    heads = _heads(
        "Split", "Notes", "Words", "Mentions", "Without mentions", "Words p10 / p50 / p90", "Widened", "Lost"
    )
    note = (
        "<p class='note'>Widened: a mention ended inside a word and reaches to its border in training. Lost: it "
        "covers no word of its own.</p>"
    )
    chart = _bins("Notes by length", facts["lengths"], axis="words from", unit="notes")
    return f"{table(heads, rows)}{note}<div class='charts'>{chart}{_rates(facts)}</div>"


def _rates(facts: Mapping[str, Any]) -> str:
    """Return the mentions per 1,000 words as bars."""
    per_type = facts["labels"]["per_type"]
    names = sorted(per_type, key=lambda name: -per_type[name]["mentions"])[:_MOST_BARS]
    values: list[float | None] = [per_type[name]["per_thousand_words"] for name in names]
    return bar_chart(
        "Mentions per 1,000 words",
        [_short(name) for name in names],
        [Series(name="mentions", values=values)],
        unit="per 1,000 words",
        digits=2,
        axis="type",
    )


def _labels(facts: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Return the label distribution, beside that of other sites where their exports are given."""
    labels = facts["labels"]
    unit = labels["unit"]
    heads = _heads(
        "Type",
        "Mentions",
        f"{unit.capitalize()}s",
        "Distinct",
        "Per 1,000 words",
        "Share",
        *(_short(str(other["site"]), 18) for other in others),
    )
    rows = [
        _row(
            name,
            f"{row['mentions']:,}",
            f"{row['units']:,}",
            f"{row['distinct']:,}",
            f"{row['per_thousand_words']:.2f}",
            f"{row['share']:.1%}",
            *(_other_share(other, name) for other in others),
        )
        for name, row in sorted(labels["per_type"].items(), key=lambda item: -item[1]["mentions"])
    ]
    missing = [name for name, row in labels["per_type"].items() if not row["mentions"]]
    told = (
        f"<p class='note'>Never annotated here: {escape(', '.join(missing))}. The site can take part all the "
        "same.</p>"
        if missing
        else ""
    )
    beside = (
        "<p class='note'>The last columns are other sites' shares of what their exports show.</p>"
        if others
        else ""
    )
    return f"{table(heads, rows)}{told}{beside}"


def _other_share(other: Mapping[str, Any], name: str) -> str:
    """Return another site's share of a type, or that it is withheld or unknown."""
    labels = other["labels"]
    if name in labels["share_of_shown"]:
        return f"{labels['share_of_shown'][name]:.1%}"
    return "withheld" if name in labels["mentions"] else "–"


def _suspicions(report: QualityReport) -> str:
    """Return the labels that look wrong, with excerpts."""
    check = report.facts["label_check"]
    agreement = check["agreement"]
    told = (
        f"<p>A light classifier, fitted on the other units each time, expects another label at "
        f"{count(check['candidates'], 'place')} of {count(check['words'], 'word')}"
        + ("" if agreement is None else f"; it agrees with {agreement:.1%} of the annotated words")
        + ". A candidate is a question to an annotator, not an error.</p>"
    )
    found = [_suspicion(one) for one in report.labels.candidates[: _SHOWN + _FOLDED]]
    if not found:
        return told
    heads = _heads("Note", "Given", "Expected", "Margin", "In context", numbers=(3,))
    folded = found[_SHOWN:]
    more = details(f"{len(folded)} more", table(heads, folded)) if folded else ""
    rest = len(report.labels.candidates) - len(found)
    more += f"<p class='note'>{rest:,} further ones are not shown.</p>" if rest else ""
    changes = "".join(
        f"<dt>{escape(name)}</dt><dd>{number:,}</dd>"
        for name, number in list(check["by_change"].items())[:20]
    )
    summary = details("By kind of change", f"<dl class='pairs'>{changes}</dl>")
    return f"{told}{table(heads, found[:_SHOWN])}{more}{summary}"


def _suspicion(one: Suspicion) -> str:
    """Return one candidate's row; its text is a record's and is escaped."""
    before, inside, after = (escape(" ".join(part.split())) for part in one.excerpt)
    excerpt = f"…{before} <mark>{inside}</mark> {after}…"
    return (
        f"<tr><th scope='row'>{escape(_short(one.note_id, 32))}</th><td class='tag'>{escape(one.given or 'none')}</td>"
        f"<td class='tag'>{escape(one.suggested or 'none')}</td><td class='n'>{one.margin:.2f}</td>"
        f"<td class='excerpt'>{excerpt}</td></tr>"
    )


def _encoder(encoder: Mapping[str, Any]) -> str:
    """Return how the encoder's vocabulary and window fit."""
    pairs = [
        ("Pieces per word", f"{encoder['pieces_per_word']:.3f}"),
        ("Unknown pieces", f"{encoder['unknown_share']:.2%}"),
        ("Window", f"{encoder['max_tokens']} pieces"),
        ("Windows in train", f"{encoder['windows']:,}"),
        ("Notes longer than a window", f"{encoder['notes_longer_than_a_window']:,}"),
        ("Pieces beyond the first window", f"{encoder['pieces_beyond_share']:.1%}"),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs)
    note = (
        "<p class='note'>Above about 2 pieces a word, the vocabulary was made for other text or another language; "
        "consider another encoder. What lies beyond a note's first window is in further windows and is not lost.</p>"
    )
    return f"<dl class='pairs'>{listed}</dl>{note}"


def _copies(facts: Mapping[str, Any]) -> str:
    """Return duplicates within splits and leakage between them."""
    rows = [
        _row(name, f"{one['notes']:,}", f"{one['exact']:,}", f"{one['near']:,}")
        for name, one in facts["duplicates"].items()
    ]
    content = table(_heads("Split", "Notes", "Exact copies", "Near copies"), rows)
    leaks = [
        _row(name, f"{one['notes']:,}", f"{one['patients']:,}" if "patients" in one else "–")
        for name, one in facts["leakage"].items()
    ]
    if leaks:
        content += "<h3>The same in two splits</h3>" + table(_heads("Where", "Notes", "Patients"), leaks)
        content += (
            "<p class='note'>Notes share 20 words in a row, or are the same as a whole. A score on a leaked note is "
            "too high.</p>"
        )
    return content


def _units(facts: Mapping[str, Any]) -> str:
    """Return how many notes documents and patients have."""
    if not facts["units"]:
        return "<p>The data names neither documents nor patients: each note is a unit of its own.</p>"
    charts = [
        _bins(
            f"Notes per {unit} ({part['units']:,} {unit}s)",
            part["notes_per_unit"],
            axis="notes",
            unit=f"{unit}s",
        )
        for unit, part in facts["units"].items()
    ]
    return f"<div class='charts'>{''.join(charts)}</div>"


def _privacy(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return what each unit's number supports, as tables and one chart."""
    content = []
    for part in parts:
        title = f"{part['unit'].capitalize()}: {part['units']:,} units, δ {small(part['delta'])}"
        if not part["rows"]:
            content.append(f"<h3>{escape(title)}</h3><p>Too few for a private run of any use.</p>")
            continue
        noises = list(part["rows"][0]["epsilon"])
        heads = _heads("Units in a step", "q", "Steps", *(f"ε, noise {noise}" for noise in noises))
        rows = [
            _row(
                f"{row['batch']:,}",
                f"{row['q']:.3g}",
                f"{row['steps']:,}",
                *(f"{row['epsilon'][noise]:.2f}" for noise in noises),
            )
            for row in part["rows"]
        ]
        content.append(f"<h3>{escape(title)}</h3>{table(heads, rows)}")
    note = (
        f"<p class='note'>Upper bounds (Rényi) for {parts[0]['epochs']} draws of each unit on average, add-or-remove-"
        "one unit. A plan's own bound is a little lower. The rate q of a plan rests on a public number of units, not "
        "on this one.</p>"
    )
    return f"<div class='charts'>{_epsilons(parts)}</div>{''.join(content)}{note}"


def _epsilons(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return epsilon over noise, one line for each unit, in its middle batch size."""
    lines = [(part, part["rows"][len(part["rows"]) // 2]) for part in parts if part["rows"]]
    if not lines:
        return ""
    noises = list(lines[0][1]["epsilon"])
    series = [
        Series(
            name=f"{part['unit']}, {row['batch']} a step", values=[row["epsilon"][noise] for noise in noises]
        )
        for part, row in lines
    ]
    return line_chart("ε by noise multiplier", noises, series, digits=2, axis="noise multiplier")


def _bins(title: str, bins: Mapping[str, int], *, axis: str, unit: str) -> str:
    """Return a histogram."""
    shown = {name: number for name, number in bins.items() if name != "0" or number}
    values: list[float | None] = [float(number) for number in shown.values()]
    # Below the bars stands where each begins: the whole names would run into each other.
    names = [name.split("-")[0] for name in shown]
    return bar_chart(title, names, [Series(name=unit, values=values)], unit=unit, axis=axis)


def _heads(first: str, *rest: str, numbers: Sequence[int] | None = None) -> str:
    """Return a table's heads; all but the first are of numbers unless `numbers` says which."""
    cells = [f"<th scope='col'>{escape(first)}</th>"]
    for index, head in enumerate(rest, start=1):
        kind = " class='n'" if numbers is None or index in numbers else ""
        cells.append(f"<th scope='col'{kind}>{escape(head)}</th>")
    return "".join(cells)


def _row(name: str, *values: str) -> str:
    """Return a row of numbers."""
    cells = "".join(f"<td class='n'>{escape(value)}</td>" for value in values)
    return f"<tr><th scope='row'>{escape(name)}</th>{cells}</tr>"


def _short(name: str, most: int = 10) -> str:
    """Return a name that fits below a bar or into a cell."""
    return name if len(name) <= most else name[: most - 1] + "…"
