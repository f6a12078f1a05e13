"""Geometry of the charts, which a template draws as SVG: positions in pixels of a drawing of a fixed width."""

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40
ROW = 38  # height of a bar with its name
MAX_X_TICKS = 10

Point = tuple[float, float, float | None, float | None]  # x, y, low, high


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    x_label: str,
    y_label: str,
    span: Sequence[float] | None = None,
    y_range: tuple[float, float] | None = None,
    whole_x: bool = True,
) -> dict[str, Any]:
    """Return paths, bands of intervals and axes of a chart of lines.

    span: x values from which to which the background is marked. y_range: default: from zero to the largest value.
    """
    points = [point for line in series.values() for point in line]
    xs, ys = [point[0] for point in points] or [0.0], [point[1] for point in points] or [0.0]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = y_range or (min(0.0, *ys), max(*ys, 1e-9))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    lines: list[dict[str, Any]] = []
    for name, line in series.items():
        dots = [place(point[0], point[1]) for point in line]
        lows = [place(x, low) for x, _, low, _ in line if low is not None]
        highs = [place(x, high) for x, _, _, high in line if high is not None]
        band = [*highs, *reversed(lows)] if len(lows) > 1 and len(lows) == len(highs) else []
        lines.append({"name": name, "style": len(lines) % 6, "path": _join(dots), "dots": dots, "band": _join(band)})
    x_ticks = _x_ticks(sorted(set(xs)), x_low, x_high, whole=whole_x)
    shift = 0.5 * (WIDTH - LEFT - RIGHT) / max(1, len(set(xs)))
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "lines": lines,
        "x_label": x_label,
        "y_label": y_label,
        "x_ticks": [(place(x, y_low)[0], f"{x:g}" if whole_x else f"{x:.1f}") for x in x_ticks],
        "y_ticks": [(place(x_low, y)[1], f"{y:g}") for y in ticks(y_low, y_high)],
        "span": _span(place(span[0], 0)[0], place(span[-1], 0)[0], shift) if span else None,
    }


def bar_chart(bars: Sequence[tuple[str, float, float | None, float | None]], **marks: float) -> dict[str, Any]:
    """Return bars with intervals, of shares from 0 to 1, and a vertical line for each of `marks`."""

    def across(share: float) -> float:
        return round(4 + min(max(share, 0.0), 1.0) * (WIDTH - 8), 1)

    return {
        "width": WIDTH,
        "height": ROW * len(bars) + 24,
        "bottom": ROW * len(bars),
        "bars": [
            {
                "name": name,
                "y": ROW * number,
                "value": f"{100 * value:.1f}",
                "end": across(value),
                "interval": None if low is None or high is None else (across(low), across(high)),
                "bounds": "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]",
            }
            for number, (name, value, low, high) in enumerate(bars)
        ],
        "ticks": [(across(share / 100), f"{share}") for share in (0, 25, 50, 75, 100)],
        "marks": [(across(share), name) for name, share in marks.items()],
    }


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the chart of accuracy against confidence, and the number of clips of each bin."""
    filled = [entry for entry in bins if entry["clips"]]
    line: list[Point] = [(100 * entry["confidence"], 100 * entry["accuracy"], None, None) for entry in filled]
    diagonal: list[Point] = [(0.0, 0.0, None, None), (100.0, 100.0, None, None)]
    chart = line_chart(
        {"accuracy": line, "perfectly calibrated": diagonal},
        x_label="confidence, per cent",
        y_label="accuracy, per cent",
        y_range=(0, 100),
    )
    chart["lines"][1] |= {"style": 2, "dots": []}  # grey and dashed, without dots
    most = max((entry["clips"] for entry in filled), default=1)
    chart["sizes"] = [round(2.5 + 5 * (entry["clips"] / most) ** 0.5, 1) for entry in filled]
    return {
        **chart,
        "x_ticks": [(chart["left"] + x / 100 * (chart["right"] - LEFT), f"{x}") for x in (0, 25, 50, 75, 100)],
    }


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`.

    >>> ticks(0, 100), ticks(0, 2.3)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.0, 0.5, 1.0, 1.5, 2.0])
    """
    from math import ceil, floor, log10

    raw = (high - low) / count
    power = 10.0 ** floor(log10(raw)) if raw > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _x_ticks(values: list[float], low: float, high: float, *, whole: bool) -> list[float]:
    if len(values) <= MAX_X_TICKS or not whole:
        return values
    return [value for value in ticks(low, high, MAX_X_TICKS) if value == int(value)]


def _span(first: float, last: float, shift: float) -> tuple[float, float]:
    """Return where the marked background begins, and its width: half a step beyond its first and last value."""
    begin, end = max(LEFT, first - shift), min(WIDTH - RIGHT, last + shift)
    return round(begin, 1), round(end - begin, 1)


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
