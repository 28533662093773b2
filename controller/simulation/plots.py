"""Plots as inline SVG, in the colours of the page that they stand in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 42
TICKS = 5

Point = tuple[float, float]
Show = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Axis:
    """From low to high; logarithmic ones from above 0."""

    label: str
    low: float
    high: float
    show: Show
    logarithmic: bool = False

    @property
    def ticks(self) -> list[float]:
        """Round numbers within it."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            inside = [tick for tick in ticks if self.low <= tick <= self.high]
            return inside if len(inside) <= 2 * TICKS else [t for t in inside if f"{t:e}"[0] == "1"]
        step = _round_step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def part(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


class Plot:
    """A frame with two axes, to draw into. Series have the classes s0, s1, … of the page's style."""

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self._title, self._x, self._y = title, x, y
        self._marks: list[str] = []

    def line(self, points: Sequence[Point], series: int) -> None:
        """Joins points; a NaN interrupts the line."""
        runs: list[list[Point]] = [[]]
        for x, y in points:
            if math.isnan(y):
                runs.append([])
            else:
                runs[-1].append((x, y))
        for run in runs:
            if run:
                path = " ".join(f"{self._at_x(x):.1f},{self._at_y(y):.1f}" for x, y in run)
                self._marks.append(f'<polyline class="line s{series}" points="{path}"/>')

    def level(self, y: float, label: str) -> None:
        """A dashed line across."""
        at = self._at_y(y)
        self._marks.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        self._marks.append(
            f'<text class="small" x="{WIDTH - RIGHT}" y="{at + 14:.1f}" text-anchor="end">'
            f"{escape(label)}</text>"
        )

    def bars(self, heights: Sequence[float], series: int, of: int) -> None:
        """Bars over 0, 1, 2, …, beside those of the other series."""
        for index, height in enumerate(heights):
            left = self._at_x(index + 0.1 + 0.8 * series / of)
            right = self._at_x(index + 0.1 + 0.8 * (series + 1) / of)
            top, bottom = self._at_y(height), self._at_y(self._y.low)
            self._marks.append(
                f'<rect class="bar s{series}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{right - left:.1f}" height="{bottom - top:.1f}"/>'
            )

    def dot(self, point: Point, series: int, told: str) -> None:
        """A point; `told` is shown when it is pointed at."""
        x, y = self._at_x(point[0]), self._at_y(point[1])
        self._marks.append(
            f'<circle class="dot s{series}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
            f"<title>{escape(told)}</title></circle>"
        )

    def name(self, point: Point, text: str) -> None:
        """A name beside a point."""
        x, y = self._at_x(point[0]), self._at_y(point[1])
        anchor, shift = ("end", -8) if x > WIDTH * 0.7 else ("start", 8)
        self._marks.append(
            f'<text class="small" x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def join(self, points: Sequence[Point]) -> None:
        """A thin line that shows what belongs together."""
        path = " ".join(f"{self._at_x(x):.1f},{self._at_y(y):.1f}" for x, y in points)
        self._marks.append(f'<polyline class="join" points="{path}"/>')

    def svg(self) -> str:
        """The plot as a figure."""
        parts = [
            f"<figure><figcaption>{escape(self._title)}</figcaption>"
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self._title)}">'
        ]
        for tick in self._y.ticks:
            y = self._at_y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(self._y.show(tick))}</text>'
            )
        for tick in self._x.ticks:
            text = self._x.show(tick)
            if text:
                parts.append(
                    f'<text x="{self._at_x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
                    f"{escape(text)}</text>"
                )
        bottom = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(
            f'<text class="small" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
            f"{escape(self._x.label)}</text>"
        )
        return "".join([*parts, *self._marks, "</svg></figure>"])

    def _at_x(self, value: float) -> float:
        return LEFT + min(max(self._x.part(value), 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def _at_y(self, value: float) -> float:
        return HEIGHT - BOTTOM - min(max(self._y.part(value), 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step - 1e-12)
