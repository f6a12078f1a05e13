"""Files of a report, made by Jinja2 from its document: the page, LaTeX tables, a model card and a checklist.

Everything is escaped for the format of the file: a document may hold texts of strangers. The page loads nothing, and
its content security policy lets only its own script and style run.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from mertool.features import describe_layers
from mertool.report import charts, page_charts

TEMPLATES = PackageLoader("mertool.report", "templates")
SCORE_NAMES = {"waf": "weighted F1", "accuracy": "accuracy", "uar": "UAR", "macro_f1": "macro F1"}
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after the end of a row, a bracket would begin an optional argument
    "]": "{]}",
}


class Formatted(str):
    """Text that is in the format of the file already, so that it is not escaped."""


def render_page(document: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the page; `pictures` are data URLs of JPEGs by clip."""
    environment = _environment(autoescape=True)
    script, style = (_source(environment, name) for name in ("page.js", "page.css"))
    environment.globals |= {
        "layer_chart": page_charts.layer_chart,
        "probe_chart": page_charts.probe_chart,
        "loss_chart": page_charts.loss_chart,
        "score_chart": page_charts.score_chart,
        "reliability_chart": charts.reliability_chart,
        "shade": shade,
    }
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    listing = {
        "systems": [
            {
                "name": system["name"],
                "classes": system["classes"],
                "cells": system["cells"],
                "counts": system["confusion"],
            }
            for system in document["systems"]
        ],
        "clips": document["clips"],
        "pictures": dict(pictures),
    }
    page = environment.get_template("page.html").render(
        report=document, policy=policy, script=Markup(script), style=Markup(style), listing=listing
    )
    return _without_empty_lines(page) + "\n"


def render_latex(document: Mapping[str, Any]) -> str:
    """Return tables of the scores and the tests for a paper; they need the package booktabs."""
    environment = _environment(
        autoescape=False,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        finalize=_latex,
    )
    environment.filters["raw"] = Formatted
    environment.globals["best"] = _best
    return environment.get_template("report.tex").render(report=document)


def render_markdown(template: str, document: Mapping[str, Any]) -> str:
    """Return the model card or the checklist."""
    environment = _environment(autoescape=False, finalize=_markdown)
    environment.filters["raw"] = Formatted
    environment.filters["yaml"] = lambda value: Formatted(json.dumps(str(value), ensure_ascii=False))
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(report=document)).strip() + "\n"


def _environment(autoescape: bool, **options: Any) -> Environment:
    environment = Environment(
        loader=TEMPLATES,
        autoescape=select_autoescape(default=True, default_for_string=True) if autoescape else False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "points": points,
        "duration": duration,
        "pairs": pairs,
        "layers": describe_layers,
    }
    environment.globals["SCORE_NAMES"] = SCORE_NAMES
    return environment


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    # As it stands in the page: its hash is that of exactly this text.
    return _without_empty_lines(environment.loader.get_source(environment, name)[0])


def _without_empty_lines(text: str) -> str:
    return re.sub(r"\n\s*\n+", "\n", text).strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def percent(share: float | None) -> str:
    """`73.0`; `-` where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def interval(score: Mapping[str, float | None]) -> str:
    """`[70.1, 75.8]`, empty without bounds."""
    low, high = score["low"], score["high"]
    return Formatted("" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]")


def points(gain: Mapping[str, Any]) -> str:
    """`+1.2 [-0.3, +2.8]` in points."""
    bounds = ""
    if gain["low"] is not None and gain["high"] is not None:
        bounds = f" [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    return Formatted(f"{100 * gain['difference']:+.1f}{bounds}")


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3 h 05 min`; `not recorded` where it is not known."""
    if seconds is None:
        return "not recorded"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def pairs(rows: list[Mapping[str, Any]], name: str, score: str) -> list[tuple[str, Any]]:
    """Return the name and the score of each row; `scores.waf` is an entry of an entry."""
    first, _, second = score.partition(".")
    return [(str(row[name]), row[first][second] if second else row[first]) for row in rows]


def shade(count: int, row: list[int]) -> int:
    """Return the share of a row of a confusion matrix in tenths, 0 for an empty cell and at least 1 for another."""
    return max(1, round(10 * count / sum(row))) if count else 0


def _best(systems: list[Mapping[str, Any]], score: str) -> float | None:
    """Return the best value of a score among systems, rounded as it is shown."""
    return max((round(100 * system["scores"][score]["value"], 1) for system in systems), default=None)


def _latex(value: Any) -> Any:
    if isinstance(value, Formatted) or not isinstance(value, str):
        return value
    return "".join(LATEX.get(character, character) for character in value)


def _markdown(value: Any) -> Any:
    """Escape a text so that it is no markup of Markdown or HTML, and stays in its cell of a table."""
    if isinstance(value, Formatted) or not isinstance(value, str):
        return value
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", re.sub(r"\s+", " ", value))
