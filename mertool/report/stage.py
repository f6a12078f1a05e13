"""Stage `report`: one page of runs, the runs that they were made from, and evaluations of their predictions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mertool.errors import MertoolError
from mertool.files import check_writable, write_atomic
from mertool.options.report import ReportOptions
from mertool.report.document import gather
from mertool.report.render import render_latex, render_markdown, render_page


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """The content of a report and the paths of its files.

    document: all of its content as JSON. files: the page, the JSON, LaTeX tables, the model card, the checklist.
    """

    document: dict[str, Any]
    files: tuple[Path, ...]


def report(paths: Sequence[Path], output: Path, options: ReportOptions | None = None) -> ReportResult:
    """Write a report of runs and of JSON files of `mertool evaluate`.

    Raises MertoolError if `output` is no .html file, lies in one of the runs, or if a path is neither.
    """
    options = options or ReportOptions()
    if not paths:
        raise MertoolError("no run was given: give -o folders of runs, or JSON files of `mertool evaluate`")
    if output.suffix != ".html":
        raise MertoolError(f"-o {output}: give a name that ends in .html")
    files = output_files(output)
    for file in files:
        check_writable(file, *paths)
    document, pictures = gather(paths, title=options.title, media=options.media)
    page = render_page(document, pictures)
    contents = (
        page,
        json.dumps(document, indent=1, ensure_ascii=False) + "\n",
        render_latex(document),
        render_markdown("model-card.md", document),
        render_markdown("checklist.md", document),
    )
    for file, content in zip(files, contents, strict=True):
        write_atomic(file, content.encode(errors="backslashreplace"))
    return ReportResult(document=document, files=files)


def output_files(page: Path) -> tuple[Path, ...]:
    """Return the files of a report: `report.html`, `report.json`, `report.tex`, and two `.md` files."""
    names = (".html", ".json", ".tex", ".model-card.md", ".checklist.md")
    return tuple(page.with_name(page.stem + ending) for ending in names)
