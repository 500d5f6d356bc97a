"""Small charts as inline SVG: no script, no font and no picture from elsewhere.

Colours come from the page's CSS variables, so the same chart is right in the light and in the dark.
Every mark has a `<title>`, which browsers show as a tooltip and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Final

WIDTH: Final = 560
HEIGHT: Final = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 18, 14, 38
_MOST_DOTS: Final = 40
_LEAST_RANGE: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class Series:
    """One named line or one part of stacked bars.

    Attributes:
        name: What it is called in the legend and in tooltips.
        values: One for each round; None is a gap.
        tone: A CSS class for its colour, in place of the next in order.
    """

    name: str
    values: Sequence[float | None]
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Maps rounds and values to the drawing; `marks` are the values with a line, from end to end."""

    rounds: Sequence[int | str]
    marks: Sequence[float]
    axis: str = "round"

    def x(self, index: int) -> float:
        """Return the middle of a round's band."""
        return _LEFT + (index + 0.5) * self.band

    def y(self, value: float) -> float:
        """Return the height of a value."""
        inner = HEIGHT - _TOP - _BOTTOM
        low, high = self.marks[0], self.marks[-1]
        return _TOP + inner * (1 - (value - low) / (high - low))

    @property
    def band(self) -> float:
        """The width that one round has."""
        return (WIDTH - _LEFT - _RIGHT) / max(1, len(self.rounds))


def line_chart(
    title: str,
    rounds: Sequence[int | str],
    series: Sequence[Series],
    *,
    highest: float = math.inf,
    digits: int = 3,
    axis: str = "round",
) -> str:
    """Return a figure with one line per series over the rounds, on an axis that begins at 0.

    Args:
        title: The caption.
        rounds: The rounds, one for each value.
        series: The lines, in the order of their colours (at most 6).
        highest: The largest value that can be, a round number, where the axis ends at the latest.
        digits: Decimals in the tooltips.
        axis: What the rounds are called.
    """
    series = [replace(line, values=[_finite(value) for value in line.values]) for line in series]
    values = [value for line in series for value in line.values if value is not None]
    if not values:
        return _figure(title, (), _nothing())
    scale = replace(_scale(rounds, values, highest=highest, whole=False), axis=axis)
    # The first series is what the chart is about, so it is drawn last, on top.
    marks = [_line(line, tone, scale, digits) for line, tone in zip(series, _tones(series), strict=True)]
    return _figure(title, series, _svg(title, _axes(scale) + "".join(reversed(marks))))


def bar_chart(
    title: str,
    rounds: Sequence[int | str],
    series: Sequence[Series],
    *,
    unit: str,
    digits: int = 0,
    axis: str = "round",
) -> str:
    """Return a figure with stacked bars over the rounds, or over named bins; see `line_chart`.

    Args:
        title: The caption.
        rounds: The rounds or the names of the bins, one for each value.
        series: The parts of each bar from the bottom up (at most 6).
        unit: What the values are, for the tooltips.
        digits: Decimals in the tooltips.
        axis: What the rounds are called.
    """
    totals = [sum(part.values[i] or 0.0 for part in series) for i in range(len(rounds))]
    if not any(totals):
        return _figure(title, (), _nothing())
    scale = replace(_scale(rounds, totals, highest=math.inf, whole=digits == 0), axis=axis)
    marks = "".join(_bar(series, i, scale, unit, digits) for i in range(len(rounds)))
    return _figure(title, series, _svg(title, _axes(scale) + marks))


def ticks(low: float, high: float, *, count: int = 5, whole: bool = False) -> list[float]:
    """Return round numbers that enclose `[low, high]`, about `count` of them, evenly spaced."""
    raw = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # A product and not a running sum, so that 0.3 is not 0.30000000000000004.
    return [round(number * step, 10) for number in range(first, last + 1)]


def _scale(rounds: Sequence[int | str], values: Iterable[float], *, highest: float, whole: bool) -> _Scale:
    """Return a scale from 0, or from below it where values are, up to the tick that holds them all."""
    low, high = min(0.0, *values), max(0.0, *values)
    # A range that no tick could tell from nothing gets the axis of 0 to 1.
    high = low + 1.0 if high - low < _LEAST_RANGE else min(high, highest)
    marks = ticks(low, high, whole=whole)
    return _Scale(rounds=rounds, marks=[mark for mark in marks if mark <= highest])


def _axes(scale: _Scale) -> str:
    """Draw the horizontal grid, the values beside it and the rounds below."""
    parts = []
    for value in scale.marks:
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    every = max(1, round(ticks(0, len(scale.rounds) / 12, count=1, whole=True)[-1]))
    for index, number in enumerate(scale.rounds):
        named = isinstance(number, str)
        if (named and index % every == 0) or (not named and number % every == 0) or len(scale.rounds) == 1:
            parts.append(
                f'<text class="tick" x="{scale.x(index):.1f}" y="{HEIGHT - _BOTTOM + 16}" '
                f'text-anchor="middle">{escape(str(number))}</text>'
            )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(scale.axis)}</text>'
    )
    return "".join(parts)


def _finite(value: float | None) -> float | None:
    """Return the value, or None where it is not a finite number: a loss that diverged leaves a gap."""
    return value if value is not None and math.isfinite(value) else None


def _tones(series: Sequence[Series]) -> list[str]:
    """Return the CSS class that colours each series."""
    return [item.tone or f"s{index}" for index, item in enumerate(series)]


def _line(line: Series, tone: str, scale: _Scale, digits: int) -> str:
    """Draw one line, broken at gaps, with a dot for each round while they are few."""
    path, pen = [], "M"
    for i, value in enumerate(line.values):
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{scale.x(i):.1f} {scale.y(value):.1f}")
        pen = "L"
    known = [(i, value) for i, value in enumerate(line.values) if value is not None]
    # A lone point has no line, so it always gets its dot; the last one carries the eye to the result.
    shown = known if len(known) <= _MOST_DOTS else known[-1:]
    dots = "".join(
        f'<circle class="dot" cx="{scale.x(i):.1f}" cy="{scale.y(value):.1f}" r="3.5">'
        f"<title>{escape(line.name)}, {_at(scale, i)}: {value:.{digits}f}</title></circle>"
        for i, value in shown
    )
    return f'<g class="{tone}"><path class="line" d="{"".join(path)}"/>{dots}</g>'


def _bar(series: Sequence[Series], i: int, scale: _Scale, unit: str, digits: int) -> str:
    """Draw the stacked bar of one round."""
    width = min(scale.band * 0.7, 34.0)
    parts, base = [], 0.0
    for part, tone in zip(series, _tones(series), strict=True):
        value = part.values[i] or 0.0
        if value <= 0:
            continue
        top, bottom = scale.y(base + value), scale.y(base)
        # A hairline of background between two parts, unless the part is thinner than that.
        height = max(bottom - top - 1.5, 0.75)
        parts.append(
            f'<rect class="bar {tone}" x="{scale.x(i) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="1.5"><title>{escape(part.name)}, {_at(scale, i)}: '
            f"{value:.{digits}f} {escape(unit)}</title></rect>"
        )
        base += value
    return "".join(parts)


def _at(scale: _Scale, index: int) -> str:
    """Return what a tooltip calls a round or bin."""
    return escape(f"{scale.axis} {scale.rounds[index]}")


def _svg(title: str, content: str) -> str:
    """Wrap the drawing."""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{content}</svg>'


def _nothing() -> str:
    """Return what stands in place of a chart without values."""
    return '<p class="nothing">No values were reported.</p>'


def _figure(title: str, series: Sequence[Series], content: str) -> str:
    """Return the figure with its caption and, where a colour needs a name, its legend."""
    named = zip(series, _tones(series), strict=True)
    keys = "".join(f'<li class="{tone}">{escape(item.name)}</li>' for item, tone in named)
    legend = f'<ul class="legend">{keys}</ul>' if len(series) > 1 else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{content}</figure>"


def stacked(rows: Sequence[Mapping[str, float]], *, most: int = 6) -> list[Series]:
    """Return one series per key of the rows, in order of first appearance; the smallest go into `other`.

    Args:
        rows: One mapping per round.
        most: How many series there may be, `other` included.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if len(names) > most:
        totals = {name: sum(row.get(name, 0.0) for row in rows) for name in names}
        large = sorted(names, key=lambda name: -totals[name])[: most - 1]
        rest = [name for name in names if name not in large]
        other = Series(name="other", values=[sum(row.get(name, 0.0) for name in rest) for row in rows])
        return [*stacked([{n: row.get(n, 0.0) for n in names if n in large} for row in rows]), other]
    return [Series(name=name, values=[row.get(name, 0.0) for row in rows]) for name in names]
