"""The files of a report: nothing is loaded or run but the page's own, and every text is escaped."""

import html
import json
import re

import pytest
from browser import Page, find_browser
from fixtures.reported import COLOUR, HOSTILE, picture_colour

from mertool.report.charts import bar_chart, line_chart, ticks
from mertool.report.render import render_latex, render_markdown, render_page, shade

CLICK = """(() => {
  const cell = [...document.querySelectorAll('.cell:not([disabled])')][0];
  cell.click();
  const panel = document.getElementById(cell.getAttribute('aria-controls'));
  return {count: cell.textContent, items: panel.querySelectorAll('li').length, text: panel.textContent,
          faces: panel.querySelectorAll('img').length, title: document.title};
})()"""


@pytest.fixture(scope="module")
def page(reported, call, tmp_path_factory):
    """A page whose title and first transcript try to run a script."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    runs = [reported / "runs" / name for name in ("both", "text", "probe")]
    call("report", *runs, reported / "metrics.json", "-o", path, "--title", HOSTILE, "-q")
    return path


def listing_of(page):
    """The data of the page's script."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="listing">(.*?)</script>', text, re.S).group(1))


def test_texts_are_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert f"<h1>{html.escape(HOSTILE, quote=True).replace('&#x27;', '&#39;')}</h1>" in text
    assert text.count("<script") == 2
    assert "<img" not in text
    assert listing_of(page)["clips"]["c0"]["text"] == HOSTILE


def test_the_page_names_no_other_file(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(src|href|action)="(?!#)', text)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    assert "default-src &#39;none&#39;" in text


def test_faces_are_those_of_the_store(page):
    pictures = listing_of(page)["pictures"]
    assert set(pictures) == {f"c{number}" for number in range(50)}
    assert picture_colour(pictures["c1"]) == pytest.approx(COLOUR, abs=12)


def test_latex_is_escaped_and_balanced(reported, call, tmp_path):
    call("report", reported / "runs" / "both", reported / "runs" / "text", "-o", tmp_path / "r.html", "-q")
    document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    document["systems"][0]["name"] = "50% of $x_1 & {y} \\ [z]"
    tables = render_latex(document)
    assert r"50\% of \$x\_1 \& \{y\} \textbackslash{} {[}z{]}" in tables
    bare = re.sub(r"\\[{}%&$#_]", "", tables)
    assert bare.count("{") == bare.count("}")
    assert bare.count(r"\begin{") == bare.count(r"\end{") == 2 * bare.count(r"\toprule")
    assert bare.count("$") % 2 == 0


def test_the_best_score_is_bold(reported, call, tmp_path):
    call("report", reported / "runs" / "both", reported / "runs" / "text", "-o", tmp_path / "r.html", "-q")
    document = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    best = max(document["systems"], key=lambda system: system["scores"]["waf"]["value"])
    (row,) = re.findall(rf"^{best['name']} & 60 & (.*?) \{{", (tmp_path / "r.tex").read_text(), re.M)
    assert row == rf"\textbf{{{100 * best['scores']['waf']['value']:.1f}}}"
    assert (tmp_path / "r.tex").read_text().split(r"\end{table}")[0].count(r"\textbf") == 4


def test_the_model_card_has_valid_metadata(page):
    import yaml

    card = page.with_name("report.model-card.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["model-index"][0]["name"] == HOSTILE
    names = [result["dataset"]["name"] for result in metadata["model-index"][0]["results"]]
    assert names == ["both, cross-validation", "text, cross-validation", "metrics.json, evaluation"]
    assert "<script>" not in card.split("---", 2)[2].replace(r"\<script\>", "")


def test_the_checklist_is_filled_from_the_runs(page):
    text = page.with_name("report.checklist.md").read_text(encoding="utf-8")
    assert "- [x] The hyper-parameters: both: " in text
    assert "corrected by Holm for 3 tests" in text
    assert text.count("- [ ]") == text.count("*For the authors to answer.*") >= 3
    assert not re.search(r"\\\\", text)  # nothing is escaped twice


def test_a_document_without_any_run_is_rendered():
    kinds = ("systems", "tests", "runs", "layers", "adaptation", "methods", "alignment", "fusion", "robustness")
    document = {name: [] for name in (*kinds, "failures", "encoders", "ledger", "missing")}
    document |= {"title": "none", "mertool": "0", "made": "now", "clips": {}, "media": True}
    assert "<h1>none</h1>" in render_page(document, {})
    assert "booktabs" in render_latex(document)
    assert "# none" in render_markdown("model-card.md", document)
    assert "- [x]" not in render_markdown("checklist.md", document)


def test_shades_of_a_confusion_matrix():
    assert [shade(count, [0, 1, 99]) for count in (0, 1, 99)] == [0, 1, 10]


def test_positions_of_a_line():
    chart = line_chart({"a": [(0, 0, None, None), (1, 50, 25, 75), (2, 100, None, None)]}, x_label="x", y_label="y")
    (line,) = chart["lines"]
    assert line["dots"][0] == (chart["left"], chart["bottom"])
    assert line["dots"][2] == (chart["right"], chart["top"])
    assert line["dots"][1][1] == pytest.approx((chart["top"] + chart["bottom"]) / 2)
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]


def test_bars_end_at_their_share():
    chart = bar_chart([("all", 1.0, None, None), ("half", 0.5, 0.25, 1.2)])
    assert [bar["end"] for bar in chart["bars"]] == [chart["width"] - 4, chart["width"] / 2]
    assert chart["bars"][1]["interval"][1] == chart["width"] - 4


@pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
@pytest.mark.slow
def test_in_a_browser(page, tmp_path):
    with Page(tmp_path / "profile") as browser:
        for width in (1280, 375):
            browser.look_like(width=width)
            browser.open(page)
            found = browser.run(CLICK)
            assert found["items"] == int(found["count"]) > 0
            assert found["faces"] > 0
            assert re.search(r"c\d+", found["text"])
            # Nothing sticks out of the window.
            assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
            assert found["title"] == HOSTILE  # no script of the texts ran
            told = [
                params for method, params in browser.events if method in ("Log.entryAdded", "Runtime.exceptionThrown")
            ]
            assert told == []
            asked = [p["request"]["url"] for m, p in browser.events if m == "Network.requestWillBeSent"]
            assert [url for url in asked if not url.startswith("data:")] == [page.absolute().as_uri()]
        colours = []
        for dark in (False, True):
            browser.look_like(dark=dark)
            colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
        assert colours == ["rgb(255, 255, 255)", "rgb(20, 24, 30)"]
        browser.look_like(dark=True, medium="print")
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        browser.save_pdf(tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
