"""Small figures as SVG, and rows that are compared at a glance: no script, sharp on paper, every mark tells its figures.

A mark is remembered in data coordinates and placed when the figure is asked for, so that nothing drawn is ever cut off.
Colours never stand alone: a shift has its sign written on it, a bound is hatched, lines differ in dashes and markers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from nag.shift.page import number

__all__ = ["COLOURS", "DASHES", "SHAPES", "Chart", "cells", "on_one_axis", "scale_of", "swatch", "ticks"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B8578F", "#8A6A00", "#2F7FB0", "#555555")
"""Okabe and Ito's palette, told apart with any colour vision; its pale ones are darkened until they read on white."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")
SHAPES = ("circle", "square", "diamond", "triangle", "cross")
COLD, HOT = (
    ((228, 228, 228), (146, 197, 222), (33, 102, 172)),
    ((228, 228, 228), (244, 165, 130), (178, 24, 43)),
)
SMALLEST_SCALE = (
    0.05  # of log(sigma/alpha): what is measured to a hundredth is not painted as if it were large
)
MOST_SIGNS = 40  # in a strip of more steps a sign has no room


# Strips


def scale_of(plain: Iterable[Iterable[Mapping[str, Any]]]) -> float:
    """The shift at which the colours of all strips are full: 1, 2, 3 or 5 times a power of ten.

    It is above nine plain steps in ten, and above three standard errors of half of them, or noise would look like shift.
    """
    steps = [step for run in plain for step in run]
    found = [
        abs(step["shift"] if step["shift"] is not None else step["bound"])
        for step in steps
        if step["shift"] is not None or step.get("bound") is not None
    ]
    errors = [step["standard_error"] for step in steps if step["standard_error"] is not None]
    top = max(
        SMALLEST_SCALE,
        float(np.quantile(found, 0.9)) if found else 0.0,
        3 * float(np.median(errors)) if errors else 0.0,
    )
    power = 10.0 ** math.floor(math.log10(top) + 1e-9)
    return next(digit * power for digit in (1, 2, 3, 5, 10) if digit * power >= top * (1 - 1e-9))


def tint(share: float) -> str:
    """The colour of a shift, from -1 (cleaner, blue) over 0 (grey) to 1 (noisier, red); by the root, so that small ones show."""
    stops, place = HOT if share > 0 else COLD, 2 * math.sqrt(min(abs(share), 1.0))
    first, second = stops[int(place > 1)], stops[1 + int(place > 1)]
    mixed = (round(a + (b - a) * (place - (place > 1))) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def cells(
    steps: Sequence[Mapping[str, Any]], scale: float, interval: Sequence[float | None] = (None, None)
) -> list[dict[str, Any]]:
    """A strip: for each step its kind (measured, bound or blank), colour, sign where it is clear, words, and whether it counts.

    Args:
        steps: in sampling order: log_snr, shift, standard_error, and what else is known of bound, reason and timestep.
        scale: shift of the full colour.
        interval: log-SNRs that the means are taken over, None = no end.
    """
    low, high = (
        end if one is None else one for one, end in zip(interval, (-math.inf, math.inf), strict=True)
    )
    found = []
    for step in steps:
        where = f"log-SNR {number(step['log_snr'], 2)}"
        where = f"timestep {step['timestep']:g}, {where}" if step.get("timestep") is not None else where
        value, bound = step["shift"], step.get("bound")
        if value is not None:
            kind, error = "measured", step["standard_error"] or 0.0
            said, clear = f"{number(value, 3, True)} ± {number(error, 3)}", abs(value) > 2 * error
        elif bound is not None:
            kind, value, clear = "bound", bound, True
            said = f"{'at most' if bound < 0 else 'at least'} {number(bound, 3, True)}"
        else:
            kind, clear, said = "blank", False, f"no number: {step.get('reason') or 'not measurable'}"
        share = (value or 0.0) / scale
        found.append(
            {
                "kind": kind,
                "colour": None if kind == "blank" else tint(share),
                "dark": abs(share) > 0.6,
                "sign": ("+" if share > 0 else "−") if clear and len(steps) <= MOST_SIGNS else "",
                "words": f"{where}: {said}",
                "counts": kind != "blank" and low <= step["log_snr"] < high,
            }
        )
    return found


# Bars


def on_one_axis(bars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Places shares of a plain value, each `share` ± `half` below or above it, in percent of the width of a row.

    What lies far above runs out of the picture, so that the small differences below can be seen.
    """
    found = [(bar["share"], bar["half"]) for bar in bars if "share" in bar]
    low = min([-0.05, *(share - half for share, half in found)])
    high = min(max([0.05, *(share + half for share, half in found)]), max(-3 * low, 0.2))

    def place(share: float) -> float:
        return 100 * (min(max(share, low), high) - low) / (high - low)

    placed = []
    for bar in bars:
        if "share" in bar:
            left, right = (place(bar["share"] + side * bar["half"]) for side in (-1, 1))
            bar = bar | {
                "left": left,
                "width": right - left,
                "at": place(bar["share"]),
                "beyond": bar["share"] > high,
            }
        placed.append(bar)
    axis = [
        {"at": place(v), "name": f"{number(100 * v, 0, True)} %" if v else "plain"} for v in ticks(low, high)
    ]
    return {"bars": placed, "axis": axis, "zero": place(0.0)}


# Figures


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Where an axis is labelled. A log axis has 1, 2 and 5, over three decades the decades, and always two labels or more."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        wide = high / low > 10**2.5
        every = max(1, round(len(powers) / 6)) if wide else 1
        found = [digit * 10.0**power for power in powers[::every] for digit in ((1,) if wide else (1, 2, 5))]
        inside = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) >= 2:
            return inside
    even = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [
        value
        for value in map(float, even)
        if low - 1e-9 * (high - low) <= value <= high + 1e-9 * (high - low)
    ]


def _labels(values: Sequence[float]) -> dict[float, str]:
    """Numbers as a reader writes them; powers of ten as such where some are long."""
    powers = [round(math.log10(value)) if value > 0 else 0 for value in values]
    if any(not -3 <= power <= 4 for power in powers) and all(
        math.isclose(10.0**power, value) for power, value in zip(powers, values, strict=True)
    ):
        raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
        return {
            value: "10" + str(power).translate(raised) for power, value in zip(powers, values, strict=True)
        }
    return {value: f"{round(value, 12) or 0.0:g}".replace("-", "−") for value in values}


Place = Callable[[float], float]


@dataclass(kw_only=True)
class Chart:
    """A figure that fills as it is told, and is drawn as text of `svg`."""

    words: str  # what it shows, for who cannot see it
    x: str = ""  # label of the axis
    y: str = ""
    log_x: bool = False
    log_y: bool = False
    width: int = 360
    height: int = 230
    x_range: tuple[float, float] | None = None  # None: what is drawn, and a little more
    y_range: tuple[float, float] | None = None
    x_names: Mapping[float, str] | None = None  # labels in place of numbers
    y_names: Mapping[float, str] | None = None
    _marks: list[Callable[[Place, Place], str]] = field(default_factory=list)
    _x: list[float] = field(default_factory=list)
    _y: list[float] = field(default_factory=list)

    def _drawable(self, x: float | None, y: float | None) -> bool:
        return x is not None and y is not None and (not self.log_x or x > 0) and (not self.log_y or y > 0)

    def _path(
        self, points: Sequence[tuple[float, float]], style: str, words: str = "", closed: bool = False
    ) -> None:
        points = [point for point in points if self._drawable(*point)]
        self._x += [x for x, _ in points]
        self._y += [y for _, y in points]
        title = f"<title>{escape(words)}</title>" if words else ""

        def mark(px: Place, py: Place) -> str:
            at = _thinned([(round(10 * px(x)), round(10 * py(y))) for x, y in points])
            steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(at)]
            text = f"M{at[0][0] / 10:g} {at[0][1] / 10:g}l" + " ".join(
                f"{u / 10:g} {v / 10:g}" for u, v in steps
            )
            return f'<path d="{text}{"z" if closed else ""}" {style}>{title}</path>'

        self._marks.append(mark)

    def area(
        self,
        points: Sequence[tuple[float, float]],
        colour: str,
        *,
        opacity: float,
        edge: float = 0,
        words: str = "",
    ) -> None:
        """A filled outline."""
        self._path(
            points,
            f'fill="{colour}" fill-opacity="{opacity:g}" stroke="{colour}" stroke-width="{edge:g}"',
            words,
            True,
        )

    def line(
        self,
        x: Sequence[float],
        y: Sequence[float | None],
        colour: str,
        *,
        dash: str = "",
        width: float = 1.8,
        band: Sequence[float | None] | None = None,
    ) -> None:
        """A line, interrupted where there is no number; around it a band of this half width."""
        part: list[tuple[float, float, float]] = []
        half = [0.0] * len(x) if band is None else band
        for a, b, c in [*zip(x, y, half, strict=True), (math.nan, None, None)]:
            if self._drawable(a, b):
                part.append((a, b, c or 0.0))  # type: ignore[arg-type]
                continue
            if band is not None and len(part) > 1:
                self.area(
                    [(u, v + w) for u, v, w in part] + [(u, v - w) for u, v, w in part[::-1]],
                    colour,
                    opacity=0.16,
                )
            if len(part) > 1:
                style = f'fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-dasharray="{dash or "none"}"'
                self._path([(u, v) for u, v, _ in part], style)
            part = []

    def points(
        self,
        x: Sequence[float],
        y: Sequence[float | None],
        colour: str,
        *,
        shape: str = "circle",
        hollow: bool = False,
        size: float = 3.5,
        error: Sequence[float | None] | None = None,
        words: Sequence[str] | None = None,
    ) -> None:
        """Markers, with bars of this half width; one that is pointed at says its words."""
        for k, (a, b) in enumerate(zip(x, y, strict=True)):
            if not self._drawable(a, b):
                continue
            half = 0.0 if error is None else error[k] or 0.0
            ends = [(a, v) for v in (b - half, b + half) if self._drawable(a, v)]  # type: ignore[operator]
            if half and len(ends) == 2:
                self._path(ends, f'stroke="{colour}" stroke-width="1.2"')
            self._x.append(a)
            self._y.append(b)  # type: ignore[arg-type]
            said = "" if words is None else f"<title>{escape(words[k])}</title>"

            def mark(px: Place, py: Place, a: float = a, b: float = b, said: str = said) -> str:  # type: ignore[assignment]
                return _shape(shape, px(a), py(b), size, colour, hollow, said)

            self._marks.append(mark)

    def span(
        self, low: float | None, high: float | None, colour: str = "#8a93a0", opacity: float = 0.12
    ) -> None:
        """Shades the levels from low to high; None is the edge of the figure."""

        def mark(px: Place, py: Place) -> str:
            left, right = self._ends("x")
            a, b = (
                px(min(max(one, left), right))
                for one in (left if low is None else low, right if high is None else high)
            )
            top, bottom = sorted(map(py, self._ends("y")))
            shape = f'x="{a:.1f}" y="{top:.1f}" width="{max(b - a, 0):.1f}" height="{bottom - top:.1f}"'
            return f'<rect {shape} fill="{colour}" fill-opacity="{opacity:g}"/>'

        self._marks.insert(0, mark)

    def rule(self, *, y: float, dash: str = "") -> None:
        """A line across the figure."""
        self._y.append(y)

        def mark(px: Place, py: Place) -> str:
            a, b = map(px, self._ends("x"))
            style = f'stroke="#565c66" stroke-width="1" stroke-dasharray="{dash or "none"}"'
            return f'<path d="M{a:.1f} {py(y):.1f}H{b:.1f}" {style}/>'

        self._marks.insert(0, mark)

    def extent(self, axis: str) -> tuple[float, float]:
        """What was drawn, from the least to the most."""
        found = self._x if axis == "x" else self._y
        return (min(found), max(found)) if found else (1.0, 10.0)

    def _ends(self, axis: str) -> tuple[float, float]:
        fixed, log = (self.x_range, self.log_x) if axis == "x" else (self.y_range, self.log_y)
        low, high = fixed or self.extent(axis)
        if log:
            low, high = math.log10(low), math.log10(high)
        more = 0.0 if fixed and low < high else 0.05 * (high - low) or 0.5 * (0.1 if log else abs(low) or 1.0)
        return (10 ** (low - more), 10 ** (high + more)) if log else (low - more, high + more)

    @property
    def svg(self) -> str:
        """The figure. Widths and font are those of a phone; a wider page shows it larger, or more of them."""
        (x0, x1), (y0, y1) = self._ends("x"), self._ends("y")
        across = self.x_names or _labels(ticks(x0, x1, self.log_x))
        across = {value: name for value, name in across.items() if x0 <= value <= x1}
        named = self.y_names or _labels(ticks(y0, y1, self.log_y))
        left = 12 + 6.4 * max(map(len, named.values()), default=1) + (16 if self.y else 0)
        top, right, bottom = 8.0, self.width - 10.0, self.height - (38.0 if self.x else 22.0)

        def place(low: float, high: float, log: bool, start: float, end: float) -> Place:
            a, b = (math.log10(low), math.log10(high)) if log else (low, high)
            return lambda value: start + ((math.log10(value) if log else value) - a) / (b - a) * (end - start)

        px, py = place(x0, x1, self.log_x, left, right), place(y0, y1, self.log_y, bottom, top)
        grid = "".join(f"M{px(v):.1f} {top:g}V{bottom:g}" for v in across)
        grid += "".join(f"M{left:.1f} {py(v):.1f}H{right:g}" for v in named)
        text = [
            f'<text x="{px(v):.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{escape(name)}</text>'
            for v, name in across.items()
        ]
        text += [
            f'<text x="{left - 6:.1f}" y="{py(v) + 4:.1f}" text-anchor="end">{escape(name)}</text>'
            for v, name in named.items()
        ]
        if self.x:
            text.append(
                f'<text x="{(left + right) / 2:.1f}" y="{self.height - 6}" text-anchor="middle">{escape(self.x)}</text>'
            )
        if self.y:
            turned = f"translate(13 {(top + bottom) / 2:.1f}) rotate(-90)"
            text.append(f'<text transform="{turned}" text-anchor="middle">{escape(self.y)}</text>')
        marks = "".join(mark(px, py) for mark in self._marks)
        return (
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.words)}">'
            f'<path class="grid" d="{grid}"/>{marks}{"".join(text)}</svg>'
        )


Point = tuple[int, int]


def _thinned(points: list[Point], tolerance: float = 2.5) -> list[Point]:
    """A path without the points that lie so near to the straight way between those kept."""
    kept, start = points[:1], 0
    for k in range(2, len(points)):
        if any(_away(point, points[start], points[k]) > tolerance for point in points[start + 1 : k]):
            start = k - 1
            kept.append(points[start])
    return kept + points[1:][-1:]


def _away(point: Point, start: Point, end: Point) -> float:
    """Distance of a point from a piece of a straight line."""
    (u, v), (x, y) = ((one[0] - start[0], one[1] - start[1]) for one in (end, point))
    share = min(max((x * u + y * v) / (u * u + v * v), 0.0), 1.0) if u or v else 0.0
    return math.hypot(x - share * u, y - share * v)


def _shape(shape: str, x: float, y: float, size: float, colour: str, hollow: bool, inside: str) -> str:
    s = size
    paths = {
        "circle": f"M{x - s:.1f} {y:.1f}a{s:g} {s:g} 0 1 0 {2 * s:g} 0a{s:g} {s:g} 0 1 0 {-2 * s:g} 0z",
        "square": f"M{x - s:.1f} {y - s:.1f}h{2 * s:g}v{2 * s:g}h{-2 * s:g}z",
        "diamond": f"M{x:.1f} {y - 1.3 * s:.1f}l{1.3 * s:g} {1.3 * s:g} {-1.3 * s:g} {1.3 * s:g} {-1.3 * s:g} {-1.3 * s:g}z",
        "triangle": f"M{x:.1f} {y - 1.3 * s:.1f}l{1.3 * s:g} {2.3 * s:g}h{-2.6 * s:g}z",
        "down": f"M{x:.1f} {y + 1.3 * s:.1f}l{1.3 * s:g} {-2.3 * s:g}h{-2.6 * s:g}z",
        "cross": f"M{x - s:.1f} {y - s:.1f}l{2 * s:g} {2 * s:g}m0 {-2 * s:g}l{-2 * s:g} {2 * s:g}",
        "bar": f"M{x:.1f} {y - 2.2 * s:.1f}v{4.4 * s:g}",
    }
    fill = "#fff" if hollow else colour
    return f'<path d="{paths[shape]}" fill="{fill}" stroke="{colour}" stroke-width="1.5">{inside}</path>'


def swatch(colour: str, *, dash: str = "", shape: str = "", hollow: bool = False) -> str:
    """A line of a legend."""
    line = f'<path d="M1 7H27" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash or "none"}"/>'
    mark = _shape(shape, 14, 7, 3.5, colour, hollow, "") if shape else ""
    return f'<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true">{line}{mark}</svg>'
