"""The documents: commands that they show parse, links lead somewhere, sentences are short, the README is one page."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from mertool.cli import (
    align,
    app,
    corpora,
    doctor,
    evaluate,
    finetune,
    fuse,
    manifest,
    models,
    predict,
    probe_layers,
    report,
)
from mertool.encoders import ENCODERS
from mertool.errors import REASONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages written by hand for readers; the reference is generated, the benchmarks are mostly tables.
PROSE = [path for path in DOCUMENTS if path.stem not in ("reference", "benchmarks")]


def commands_of(text: str) -> list[str]:
    """Lines of shell blocks that call mertool."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("mertool ")]


COMMANDS = sorted({line for path in DOCUMENTS for line in commands_of(path.read_text(encoding="utf-8"))})
EXAMPLES = [
    module.EXAMPLE
    for module in (align, corpora, doctor, evaluate, finetune, fuse, manifest, models, predict, probe_layers, report)
]
MAX_WORDS = 25


def parse(line: str) -> None:
    """Parse a command line without running it; a wrong command or option raises."""
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("mertool", words)


def sentences(path: Path) -> list[str]:
    """Sentences of a Markdown page, without code blocks, tables, headings and the text behind links."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(\||#|!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    blocks = re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.)\s", text, flags=re.MULTILINE)
    return [part for block in blocks for part in re.split(r"(?<=[.?!:;])\s", " ".join(block.split())) if part]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documents_parses(line):
    parse(line)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_a_help_text_parses(example):
    parse(example.removeprefix("Example: "))


def test_a_wrong_option_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        parse("mertool fuse a.h5 --manifest m.csv -o run --hed concat")


def test_the_documents_show_every_stage():
    stages = {"manifest", "extract", "probe-layers", "finetune", "align", "fuse", "predict", "evaluate", "report"}
    assert {line.split()[1] for line in commands_of(README)} == stages
    assert {line.split()[1] for line in COMMANDS} >= stages | {"store"}


def test_the_readme_is_one_page():
    assert 100 <= len(README.splitlines()) <= 130


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_sentences_are_short(path):
    long = [sentence for sentence in sentences(path) if len(sentence.split()) > MAX_WORDS]
    assert not long, "\n".join(long)


def test_a_long_sentence_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nShort. " + "word " * (MAX_WORDS + 1) + "end.\n", encoding="utf-8")
    assert [len(sentence.split()) for sentence in sentences(page)] == [1, MAX_WORDS + 2]


def test_the_number_of_encoders_in_the_readme():
    assert f"`mertool models` lists {len(ENCODERS)}" in README


def test_every_failure_reason_is_documented():
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert [code for code in REASONS if f"| `{code}` |" not in formats] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())
    assert targets - {"help"} == set(re.findall(r'^\t@echo "make ([a-z-]+) ', makefile, re.MULTILINE))
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_every_benchmark_of_the_makefile_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = re.findall(r"tests/\S+\.py", makefile)
    assert scripts and [script for script in scripts if not (ROOT / script).is_file()] == []
