"""The charts of the page, from the sections of the document."""

from collections.abc import Mapping, Sequence
from typing import Any

from mertool.report.charts import Point, bar_chart, line_chart


def percent_point(x: float, score: Mapping[str, float | None]) -> Point:
    """Return a score in per cent at x."""
    value, low, high = (None if score[name] is None else 100 * score[name] for name in ("value", "low", "high"))  # type: ignore[operator]
    return x, value or 0.0, low, high


def layer_chart(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return weighted F1 by layer: of linear probes with intervals, of MLPs, and with shuffled labels."""
    rows = section["layers"]
    series: dict[str, list[Point]] = {"linear probe": [percent_point(row["layer"], row["waf"]) for row in rows]}
    for name, key in (("multilayer perceptron", "mlp"), ("shuffled labels", "chance")):
        line: list[Point] = [(row["layer"], 100 * row[key]["value"], None, None) for row in rows if row[key]]
        if line:
            series[name] = line
    return line_chart(
        series, x_label="layer (0: embedding)", y_label="weighted F1", span=section["window"], y_range=(0, 100)
    )


def probe_chart(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return weighted F1 of a probe of each adapted layer, without and with the adapter, as bars."""
    bars = []
    for row in section["probes"]:
        for kind in ("frozen", "adapted"):
            bars.append(_bar(f"layer {row['layer']}, {kind}", row[kind]))
    return bar_chart(bars)


def loss_chart(losses: Mapping[str, Sequence[float]], *, best_epoch: int | None = None) -> dict[str, Any]:
    """Return losses by epoch, counted from 1."""
    series = {
        name: [(float(number), value, None, None) for number, value in enumerate(values, 1)]
        for name, values in losses.items()
    }
    marked = None if best_epoch is None else [best_epoch, best_epoch]
    return line_chart(series, x_label="epoch", y_label="loss", span=marked)


def score_chart(rows: Sequence[tuple[str, Mapping[str, float | None]]], **marks: float) -> dict[str, Any]:
    """Return scores by name as bars with intervals."""
    return bar_chart([_bar(name, score) for name, score in rows], **marks)


def _bar(name: str, score: Mapping[str, float | None]) -> tuple[str, float, float | None, float | None]:
    return name, score["value"] or 0.0, score["low"], score["high"]
