"""The commands that documents and help texts show are commands that mertool takes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from mertool.cli import align, app, doctor, evaluate, finetune, fuse, manifest, models, predict, probe_layers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHOWN = [line for block in BLOCKS for line in block.splitlines() if line.startswith("mertool ")]
EXAMPLES = [
    module.EXAMPLE for module in (align, doctor, evaluate, finetune, fuse, manifest, models, predict, probe_layers)
]


def parse(line: str) -> None:
    """Parse a command line without running it; a wrong command or option raises."""
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("mertool", words)


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_of_the_readme_parses(line):
    parse(line)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_a_help_text_parses(example):
    parse(example.removeprefix("Example: "))


def test_the_readme_shows_every_stage():
    stages = {line.split()[1] for line in SHOWN}
    every = {"manifest", "extract", "probe-layers", "finetune", "align", "fuse", "predict", "evaluate", "store"}
    assert stages == every


def test_a_wrong_option_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        parse("mertool fuse a.h5 --manifest m.csv -o run --hed concat")


def test_the_number_of_encoders_in_the_readme():
    assert f"`mertool models` lists {len(ENCODERS)}" in README


def test_links_of_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), target
