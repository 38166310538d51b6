"""Charts as inline SVG, drawn by hand so that they follow the page's colours in light, dark and print.

Tones are named, not numbered, so that a colour means the same thing in every chart of a page; each tone also has its own
marker and dash, because colour alone is not legible to all. Blue, vermillion, teal, purple and gold are the hues of Okabe
and Ito's palette, darkened or lightened by the style sheet for contrast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Tone = Literal["neutral", "blue", "vermillion", "teal", "purple", "gold"]
TONES: tuple[Tone, ...] = ("blue", "vermillion", "teal", "purple", "gold", "neutral")
Unit = Literal["number", "percent"]

LETTER = 7.4  # width of a figure at the charts' font size of 13
DODGE = 7.0  # pixels between whiskers at the same place


@dataclass(frozen=True)
class Line:
    """A curve, or points alone.

    Args:
        label: what the legend calls it.
        tone: its colour, marker and dash.
        x, y: its points.
        low, high: ends of the points' whiskers.
        joined: by a line; the whiskers of points alone stand where the points are.
        names: a short text beside each point.
    """

    label: str
    tone: Tone
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    joined: bool = True
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LinePlot:
    """Curves over a common axis.

    Args:
        title: what is on the vertical axis, with its unit.
        x_label: what is on the horizontal axis.
        lines: the curves.
        description: the chart in a sentence, for readers who cannot see it.
        x_ticks: places and texts on the horizontal axis; round numbers by default.
        unit: "percent" for shares: the axis goes from 0 to 100 %.
        from_zero: keep zero on the vertical axis, which is then never logarithmic.
        wide: a chart that takes the page's width.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    description: str
    x_ticks: tuple[tuple[float, str], ...] | None = None
    unit: Unit = "number"
    from_zero: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Bars:
    """One value for each category, in [0, 1]."""

    label: str
    tone: Tone
    values: tuple[float, ...]


@dataclass(frozen=True)
class BarPlot:
    """Horizontal bars of shares by category, and a tick (`mark`) to compare them with."""

    title: str
    categories: tuple[str, ...]
    bars: tuple[Bars, ...]
    description: str
    mark: Bars | None = None
    wide: bool = True


def percent(share: float) -> str:
    """Print a share: 0.918 → '91.8 %'."""
    return f"{share * 100:.1f} %"


def draw(plot: LinePlot | BarPlot, width: int) -> str:
    """Return a chart as an `<svg>` element of the given width in pixels."""
    return _draw_lines(plot, width) if isinstance(plot, LinePlot) else _draw_bars(plot, width)


def legend(plot: LinePlot | BarPlot) -> list[tuple[str, str]]:
    """Return (swatch as SVG, label) for each thing in a chart."""
    if isinstance(plot, LinePlot):
        return [
            (
                _swatch((_path([(1, 7), (27, 7)], line.tone) if line.joined else "") + _marker(14, 7, line.tone)),
                line.label,
            )
            for line in plot.lines
        ]
    entries = [
        (_swatch(f'<rect x="4" y="3" width="20" height="8" rx="2" class="fill {bar.tone}"/>'), bar.label)
        for bar in plot.bars
    ]
    if plot.mark:
        entries.append((_swatch('<path d="M14 0V14" class="mark"/>'), plot.mark.label))
    return entries


def _swatch(inner: str) -> str:
    return f'<svg class="swatch" width="28" height="14" viewBox="0 0 28 14" aria-hidden="true">{inner}</svg>'


def _draw_lines(plot: LinePlot, width: int) -> str:
    height = round(min(340, max(210, width * 0.56)))
    values = [value for line in plot.lines for value in (*line.y, *(line.low or ()), *(line.high or ()))]
    places = [x for line in plot.lines for x in line.x]
    logarithmic = plot.unit == "number" and not plot.from_zero and min(values) > 0 and max(values) / min(values) > 20
    if plot.unit == "percent":
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    elif logarithmic:
        ticks = _log_ticks(min(values), max(values))
    else:
        ticks = _round_ticks(0.0 if plot.from_zero else min(values), max(values))
    bottom, top = ticks[0], ticks[-1]
    texts = (
        [f"{tick * 100:.0f} %" for tick in ticks]
        if plot.unit == "percent"
        else _tick_texts(ticks, alike=not logarithmic)
    )
    left, right, upper, lower = max(map(len, texts)) * LETTER + 14, 18.0, 10.0, 46.0
    round_places = _round_ticks(
        min(places), max(places), inside=True, whole=all(place.is_integer() for place in places)
    )
    x_ticks = plot.x_ticks or tuple(zip(round_places, _tick_texts(round_places, alike=True), strict=True))
    first, last = min([*places, *(x for x, _ in x_ticks)]), max([*places, *(x for x, _ in x_ticks)])
    whiskered = [line for line in plot.lines if line.low is not None and line.joined]
    inner = width - left - right
    margin = len(whiskered) * DODGE  # room for whiskers that stand beside the first and the last place

    def across(x: float) -> float:
        return left + margin + (x - first) / ((last - first) or 1) * (inner - 2 * margin)

    def up(y: float) -> float:
        if logarithmic:
            y, low, high = math.log(y), math.log(bottom), math.log(top)
        else:
            low, high = bottom, top
        return height - lower - (y - low) / ((high - low) or 1) * (height - lower - upper)

    parts = []
    for tick, text in zip(ticks, texts, strict=True):
        kind = "axis" if tick == bottom else "grid"
        parts.append(f'<path d="M{left:.1f} {up(tick):.1f}H{width - right:.1f}" class="{kind}"/>')
        parts.append(f'<text x="{left - 9:.1f}" y="{up(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    free = -math.inf  # where the last text ended: a text that would overlap it is left out, its tick stays
    for place, text in x_ticks:
        x, half = across(place), len(text) * LETTER / 2
        parts.append(f'<path d="M{x:.1f} {height - lower}v5" class="axis"/>')
        if x - half > free + 4:
            parts.append(f'<text x="{x:.1f}" y="{height - lower + 19:.1f}" text-anchor="middle">{escape(text)}</text>')
            free = x + half
    parts.append(
        f'<text x="{left + inner / 2:.1f}" y="{height - 6}" text-anchor="middle" class="name">{escape(plot.x_label)}</text>'
    )
    named = [(across(x), up(y)) for line in plot.lines if line.names for x, y in zip(line.x, line.y, strict=True)]
    for line in plot.lines:
        shift = (whiskered.index(line) - (len(whiskered) - 1) / 2) * DODGE if line in whiskered else 0.0
        points = [(across(x) + shift, up(y)) for x, y in zip(line.x, line.y, strict=True)]
        if line.low is not None and line.high is not None:
            for (x, _), low, high in zip(points, line.low, line.high, strict=True):
                bar = f"M{x:.1f} {up(low):.1f}V{up(high):.1f}M{x - 3.5:.1f} {up(low):.1f}h7M{x - 3.5:.1f} {up(high):.1f}h7"
                parts.append(f'<path d="{bar}" class="whisker {line.tone}"/>')
        if line.joined:
            parts.append(_path(points, line.tone))
        for name, (x, y) in zip(line.names or (), points, strict=line.names is not None):
            # On the left where another named point is close on the right.
            close = any(0 < other - x < 4 * LETTER and abs(level - y) < 13 for other, level in named)
            where = (
                f'x="{x - 7:.1f}" y="{y + 4:.1f}" text-anchor="end"' if close else f'x="{x + 7:.1f}" y="{y + 4:.1f}"'
            )
            parts.append(f"<text {where}>{escape(name)}</text>")
        if len(points) <= 30 or not line.joined:
            for place, (x, y) in enumerate(points):
                parts.append(_marker(x, y, line.tone, title=_tooltip(plot, line, place)))
    return _svg(width, height, plot.description, parts)


def _tooltip(plot: LinePlot, line: Line, place: int) -> str:
    names = dict(plot.x_ticks or ())
    x, y = line.x[place], line.y[place]
    value = percent(y) if plot.unit == "percent" else f"{y:.4g}"
    if line.low is not None and line.high is not None:
        value += f" ({line.low[place] * 100:.1f}–{line.high[place] * 100:.1f})"
    return f"{line.label}, {names.get(x, f'{x:g}')}: {value}"


def _draw_bars(plot: BarPlot, width: int) -> str:
    thick, gap = 10, 14
    row = thick * len(plot.bars) + gap
    most = int(width * 0.28 / LETTER)
    names = [name if len(name) <= most else name[: most - 1] + "…" for name in plot.categories]
    left, right, upper, lower = max(map(len, names)) * LETTER + 14, 14.0, 6.0, 30.0
    inner = width - left - right
    height = round(upper + row * len(names) + lower)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * inner
        parts.append(f'<path d="M{x:.1f} {upper}V{height - lower:.1f}" class="{"grid" if tick else "axis"}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{tick * 100:.0f}</text>')
    for place, name in enumerate(names):
        start = upper + place * row + gap / 2
        middle = start + thick * len(plot.bars) / 2
        parts.append(f'<text x="{left - 9:.1f}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for number, bar in enumerate(plot.bars):
            value = bar.values[place]
            # A bar of nothing still shows that it was measured.
            length = max(2.0, value * inner)
            parts.append(
                f'<rect x="{left:.1f}" y="{start + number * thick:.1f}" width="{length:.1f}" height="{thick - 1.5}" rx="2" '
                f'class="fill {bar.tone}"><title>{escape(plot.categories[place])}, {escape(bar.label)}: {percent(value)}</title></rect>'
            )
        if plot.mark:
            x = left + plot.mark.values[place] * inner
            parts.append(
                f'<path d="M{x:.1f} {start - 3:.1f}V{start + thick * len(plot.bars) + 2:.1f}" class="mark">'
                f"<title>{escape(plot.categories[place])}, {escape(plot.mark.label)}: {percent(plot.mark.values[place])}</title></path>"
            )
    return _svg(width, height, plot.description, parts)


def _svg(width: int, height: int, description: str, parts: list[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'
        f"{''.join(parts)}</svg>"
    )


def _path(points: Sequence[tuple[float, float]], tone: Tone) -> str:
    return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" class="line {tone}"/>'


def _marker(x: float, y: float, tone: Tone, *, title: str = "") -> str:
    """Return the tone's own shape: tones are told apart without colour."""
    shapes = {
        "neutral": f"M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z",
        "blue": f"M{x - 4.2:.1f} {y:.1f}a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0 -8.4 0z",
        "vermillion": f"M{x:.1f} {y - 5.4:.1f}l5.4 5.4l-5.4 5.4l-5.4 -5.4z",
        "teal": f"M{x:.1f} {y - 5:.1f}l4.8 8.4h-9.6z",
        "purple": f"M{x:.1f} {y + 5:.1f}l4.8 -8.4h-9.6z",
        "gold": f"M{x - 5:.1f} {y - 2.5:.1f}h10v5h-10z",
    }
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<path d="{shapes[tone]}" class="marker {tone}">{inner}</path>'


def _round_ticks(low: float, high: float, *, inside: bool = False, whole: bool = False) -> list[float]:
    """Return about five round numbers from `low` to `high`: around them, or (`inside`) between them.

    With `whole` they are whole numbers: there is no step two and a half.
    """
    if high <= low:
        low, high = (low - abs(low) * 0.1, low + abs(low) * 0.1) if low else (0.0, 1.0)
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - rough))
    if whole:
        step = float(max(1, math.ceil(step)))
    first = math.ceil(low / step - 1e-9) if inside else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _tick_texts(ticks: Sequence[float], *, alike: bool) -> list[str]:
    """Print numbers of an axis; `alike` gives all the same number of decimals."""
    texts = [f"{tick:.6g}" for tick in ticks]
    if not alike or any("e" in text for text in texts):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten around [low, high]; the powers alone where that is too many."""
    for factors in ((1, 2, 5), (1,)):
        grid = [
            factor * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for factor in factors
        ]
        below = max((tick for tick in grid if tick <= low * (1 + 1e-9)), default=grid[0])
        above = min((tick for tick in grid if tick >= high * (1 - 1e-9)), default=grid[-1])
        ticks = [tick for tick in grid if below <= tick <= above]
        if len(ticks) <= 7:
            break
    return ticks
