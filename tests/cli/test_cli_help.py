"""Help, usage errors, version and the commands that describe."""

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from mertool.cli import app

COMMANDS = [
    ["manifest"],
    ["extract", "audio"],
    ["extract", "video"],
    ["extract", "faces"],
    ["extract", "text"],
    ["probe-layers"],
    ["finetune"],
    ["align"],
    ["fuse"],
    ["predict"],
    ["evaluate"],
    ["store", "ls"],
    ["store", "check"],
    ["store", "merge"],
    ["models"],
    ["doctor"],
]
each_command = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


def plain(text: str) -> str:
    """Without colours, frames and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def test_the_commands_are_those_of_the_design(invoke):
    text = plain(invoke("--help").stdout)
    for name in {command[0] for command in COMMANDS}:
        assert f" {name} " in text


@each_command
def test_help_has_an_example(command, invoke):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: mertool {' '.join(command)}" in plain(result.stdout)


@each_command
def test_every_command_is_quiet_and_json_on_request(command, invoke):
    text = plain(invoke(*command, "--help").stdout)
    assert "--json" in text
    assert "--quiet" in text


@each_command
def test_an_unknown_option_is_a_usage_error(command, invoke):
    result = invoke(*command, "--jsn")
    assert result.exit_code == 2
    assert "--jsn" in result.stderr
    assert "--json" in plain(result.stderr)  # the suggestion
    assert result.stdout == ""


def test_an_unknown_command_is_a_usage_error(invoke):
    result = invoke("fusee", "a.h5")
    assert result.exit_code == 2
    assert "fuse" in plain(result.stderr).replace("fusee", "")


@pytest.mark.parametrize("command", [["extract", "audio"], ["probe-layers"], ["fuse"], ["predict"], ["evaluate"]])
def test_missing_arguments_are_a_usage_error(command, invoke):
    assert invoke(*command).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["probe-layers", "a.h5", "-m", "m.csv", "-o", "r", "--folds", "1"], "--folds"),
        (["finetune", "m.csv", "-o", "r", "--epochs", "0"], "--epochs"),
        (["fuse", "a.h5", "-m", "m.csv", "-o", "r", "--width", "many"], "--width"),
        (["extract", "audio", "m.csv", "-o", "a.h5", "--max-failed", "1.5"], "--max-failed"),
        (["extract", "audio", "m.csv", "-o", "a.h5", "--workers", "0"], "--workers"),
    ],
)
def test_a_number_out_of_range_is_a_usage_error(arguments, named, invoke):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert named in plain(result.stderr)


def test_the_version(invoke):
    from mertool import __version__

    assert invoke("--version").stdout == f"mertool {__version__}\n"


def test_short_options(invoke):
    assert invoke("-V").stdout == invoke("--version").stdout
    assert invoke("fuse", "-h").stdout == invoke("fuse", "--help").stdout
    assert "--install-completion" in invoke("-h").stdout


@each_command
@pytest.mark.parametrize("columns", [60, 80])
def test_help_on_a_narrow_terminal_has_all_names_whole(columns, command):
    lines = CliRunner().invoke(app, [*command, "--help"], terminal_width=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in "".join(lines)
    parser = typer.main.get_command(app)
    for name in command:
        parser = parser.commands[name]
    flags = {flag for parameter in parser.params for flag in parameter.opts if flag.startswith("-")}
    words = {word.strip(",") for line in lines for word in line.split()}
    assert flags <= words


def test_the_list_of_commands_is_not_cut():
    text = plain(CliRunner().invoke(app, ["--help"], terminal_width=60).stdout)
    assert "..." not in text.partition("Commands:")[2]
    names = ["manifest", "extract", "probe-layers", "finetune", "align", "fuse", "predict", "evaluate", "store"]
    positions = [text.index(f" {name} ", text.index("Commands:")) for name in names]
    assert positions == sorted(positions)


def test_help_mentions_that_layers_count_from_one(invoke):
    assert "Layer n is the output of transformer block n" in plain(invoke("extract", "audio", "--help").stdout)
    assert "counted from 1" in plain(invoke("finetune", "--help").stdout)


def test_models_as_json(invoke):
    from mertool.encoders import ENCODERS

    found = json.loads(invoke("models", "--json").stdout)
    assert [row["name"] for row in found["encoders"]] == [row.name for row in ENCODERS]
    assert found["defaults"]["audio"] == "hubert-large-zh"


def test_models_of_one_modality(invoke):
    found = json.loads(invoke("models", "--modality", "video", "--json").stdout)
    assert {row["modality"] for row in found["encoders"]} == {"video"}


def test_models_as_a_table(invoke):
    text = plain(invoke("models").stdout)
    assert "hubert-large-zh*" in text
    assert "TencentGameMate/chinese-hubert-large" in text


def test_doctor_as_json(invoke):
    result = invoke("doctor", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["missing"]) == (0, [])
    assert {"python", "torch", "transformers", "av", "device (auto)", "model cache"} <= set(found["facts"])


def test_doctor_says_all_is_well(invoke):
    assert "everything needed is here" in invoke("doctor").stdout


def test_doctor_names_what_is_missing(invoke, monkeypatch):
    from mertool.cli import doctor

    monkeypatch.setitem(doctor.REQUIRED, "no-such-package", "no_such_module")
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "pip install no-such-package" in result.stdout
