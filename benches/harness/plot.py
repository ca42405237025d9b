"""Line charts as SVG: a few kilobytes of text, the same for the same figures, readable on light and dark ground.

A point is a median, and a thin line behind it goes from the least to the most. Series differ in colour, mark and, where
they were computed and not measured, by dashes.
"""

import math
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

WIDTH, PANEL_HEIGHT, COLUMNS = 920, 330, 2
LEFT, RIGHT, ABOVE, BELOW = 64, 14, 30, 46  # Of the frame within its panel.
HEAD, LEGEND_LINE, LEGEND_WIDTH = 54, 18, 300
COLOURS = [
    ("#0068a8", "#63b8f0"),
    ("#c44e00", "#ff9d5c"),
    ("#00805c", "#3ecfa2"),
    ("#a33d80", "#eba0cf"),
    ("#555555", "#b4b4b4"),
]
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}.ground{fill:#ffffff}"
    ".frame{fill:none;stroke:#8c959f}.grid{stroke:#8c959f;stroke-opacity:.25}.line{fill:none;stroke-width:1.8}"
    ".computed{stroke-dasharray:6 4}.range{stroke-opacity:.55;stroke-width:1.2}"
)
DARK = "text{fill:#e6edf3}.ground{fill:#0d1117}"


@dataclass
class Axis:
    label: str
    log: bool = False
    ticks: list[float] | None = None  # Chosen by themselves if there are none.

    def at(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass
class Series:
    name: str
    points: list[tuple[float, float, float, float]]  # x; then least, median and most.
    computed: bool = False
    colour: int | None = None
    plain: bool = False  # A course of many points: a line without marks.


@dataclass
class Panel:
    x: Axis
    y: Axis
    series: list[Series] = field(default_factory=list)

    def drawn(self) -> list[Series]:
        """A logarithm has no place for zero and less."""

        def has_place(x, least, median, most):
            return (not self.x.log or x > 0) and (not self.y.log or least > 0)

        kept = (replace(s, points=[p for p in s.points if has_place(*p)]) for s in self.series)
        return [series for series in kept if series.points]


def write(path: Path, title: str, subtitle: str, panels: list[Panel]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg(title, subtitle, panels))


def svg(title: str, subtitle: str, panels: list[Panel]) -> str:
    legend = {}
    for panel in panels:
        for series in panel.drawn():
            colour = len(legend) if series.colour is None else series.colour
            legend.setdefault(series.name, (colour, series.computed, series.plain))
    columns = min(COLUMNS, len(panels))
    head = HEAD + LEGEND_LINE * math.ceil(len(legend) / (WIDTH // LEGEND_WIDTH))
    height = head + PANEL_HEIGHT * math.ceil(len(panels) / columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{colours(0)}@media(prefers-color-scheme:dark){{{DARK}{colours(1)}}}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>',
        text(16, 24, title, "title"),
        text(16, 42, subtitle),
    ]
    for index, (name, (colour, computed, plain)) in enumerate(legend.items()):
        x, y = (
            16 + index % (WIDTH // LEGEND_WIDTH) * LEGEND_WIDTH,
            HEAD + 6 + LEGEND_LINE * (index // (WIDTH // LEGEND_WIDTH)),
        )
        parts += [line([(x, y), (x + 26, y)], colour, computed), "" if computed or plain else mark(x + 13, y, colour)]
        parts.append(text(x + 33, y + 4, name))
    for index, panel in enumerate(panels):
        width = WIDTH / columns
        parts += draw(panel, legend, index % columns * width, head + index // columns * PANEL_HEIGHT, width)
    return "\n".join(part for part in [*parts, "</svg>"] if part) + "\n"


def draw(panel: Panel, legend: dict, left: float, top: float, width: float) -> list[str]:
    drawn = panel.drawn()
    if not drawn:
        return [text(left + LEFT, top + ABOVE, f"{panel.y.label}: nothing was measured")]
    frame = (left + LEFT, top + ABOVE, width - LEFT - RIGHT, PANEL_HEIGHT - ABOVE - BELOW)
    xs = [x for series in drawn for x, *_ in series.points]
    ys = [y for series in drawn for _, *values in series.points for y in values]
    x_ticks = panel.x.ticks or ticks(panel.x, min(xs), max(xs))
    y_ticks = panel.y.ticks or ticks(panel.y, min(ys) if panel.y.log else 0, max(ys))
    x_at = scale(panel.x, [*x_ticks, *xs], frame[0], frame[0] + frame[2], 10)
    y_at = scale(panel.y, [*y_ticks, *ys], frame[1] + frame[3], frame[1], 0)
    parts = [text(frame[0] - 48, frame[1] - 10, panel.y.label)]
    parts.append(text(frame[0] + frame[2] / 2, frame[1] + frame[3] + 36, panel.x.label, anchor="middle"))
    for tick in y_ticks:
        parts.append(rule(frame[0], y_at(tick), frame[0] + frame[2], y_at(tick)))
        parts.append(text(frame[0] - 7, y_at(tick) + 4, number(tick), anchor="end"))
    for tick in x_ticks:
        parts.append(rule(x_at(tick), frame[1], x_at(tick), frame[1] + frame[3]))
        parts.append(text(x_at(tick), frame[1] + frame[3] + 17, number(tick), anchor="middle"))
    parts.append('<rect class="frame" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'.format(*frame))
    for series in drawn:
        colour = legend[series.name][0]
        parts.append(line([(x_at(x), y_at(median)) for x, _, median, _ in series.points], colour, series.computed))
        for x, least, median, most in [] if series.computed or series.plain else series.points:
            if least < most:
                parts.append(rule(x_at(x), y_at(least), x_at(x), y_at(most), f"range c{colour}"))
            parts.append(mark(x_at(x), y_at(median), colour))
    return parts


def scale(axis: Axis, values: list[float], begin: float, end: float, margin: float):
    """From values to places on the sheet."""
    least, most = axis.at(min(values)), axis.at(max(values))
    span = (most - least) or 1
    begin, end = begin + margin, end - margin
    return lambda value: begin + (axis.at(value) - least) / span * (end - begin)


def ticks(axis: Axis, least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten that take in all values; fewer of them where there are many."""
    if axis.log:
        powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
        steps = (1, 2, 5) if len(powers) <= 3 else (1, 3) if len(powers) <= 4 else (1,)
        all_ticks = [step * 10.0**power for power in powers for step in steps]
        below = max((tick for tick in all_ticks if tick <= least), default=all_ticks[0])
        above = min((tick for tick in all_ticks if tick >= most), default=all_ticks[-1])
        return [tick for tick in all_ticks if below <= tick <= above]
    most = most if most > least else least + 1
    rough = (most - least) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [step * index for index in range(math.floor(least / step), math.ceil(most / step * 0.999) + 1)]


def number(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    return f"{value:.4g}"


def colours(ground: int) -> str:
    return "".join(
        f".c{index}{{stroke:{pair[ground]}}}.m{index}{{fill:{pair[ground]}}}" for index, pair in enumerate(COLOURS)
    )


def line(points: list[tuple[float, float]], colour: int, computed: bool) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="line c{colour}{" computed" if computed else ""}" points="{places}"/>'


def rule(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def mark(x: float, y: float, colour: int) -> str:
    shapes = [
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
        "M-3.6-3.6h7.2v7.2h-7.2Z",
        "M0-4.8L4.6 3.6H-4.6Z",
        "M0-5L5 0L0 5L-5 0Z",
        "M-4.6-3.6H4.6L0 4.8Z",
    ]
    return f'<path class="m{colour}" transform="translate({x:.1f} {y:.1f})" d="{shapes[colour]}"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
