"""`--config FILE`: values of options from a TOML file, which the command line overrides."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mertool.cli.arguments import ManifestOption, Quiet
from mertool.cli.options import add_command
from mertool.errors import MertoolError
from mertool.options.extract import ExtractOptions
from mertool.options.fuse import FuseOptions

FUSE = ("fuse", "-m", "clips.csv")
AUDIO = ("extract", "audio")


@pytest.fixture
def read(tmp_path):
    """A function (text of the file, *command line) that gives what the command got, or raises its error."""
    got, app, extract = {}, typer.Typer(), typer.Typer()

    def fuse(*, manifest: ManifestOption, options: FuseOptions, quiet: Quiet = False) -> None:
        got.update(manifest=manifest, options=options, quiet=quiet)

    def audio(*, options: ExtractOptions) -> None:
        got.update(options=options)

    add_command(app, "fuse", fuse, example="Example: mertool fuse")
    add_command(extract, "audio", audio, example="Example: mertool extract audio", fixed={"modality": "audio"})
    extract.command("faces")(lambda: None)
    app.add_typer(extract, name="extract")

    def run(text, *arguments):
        path = tmp_path / "mertool.toml"
        path.write_text(text, encoding="utf-8")
        result = CliRunner().invoke(app, [*arguments, "--config", str(path)])
        if isinstance(result.exception, MertoolError):
            raise result.exception
        return {**got, "code": result.exit_code}

    return run


def test_options_in_a_file(read):
    text = (
        'seeds = 4\nlearning-rate = 1\nlabel_smoothing = 0.1\ncalibrate = false\nclasses = ["sad", "happy"]\n'
        'unlabelled = ["a.h5", "b.h5"]\nfolds = 3\nhead = "late"\nquiet = true\n'
    ).replace("learning-rate = 1", "learning-rate = 0.01")
    got = read(text, *FUSE)
    assert got["quiet"] is True
    assert got["options"] == FuseOptions(
        seeds=4,
        learning_rate=0.01,
        label_smoothing=0.1,
        calibrate=False,
        classes=("sad", "happy"),
        unlabelled=(Path("a.h5"), Path("b.h5")),
        folds=3,
        head="late",
    )


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ('classes = "sad,happy"', {"classes": ("sad", "happy")}),
        ('folds = "folds.csv"', {"folds": Path("folds.csv")}),
        ("dropout = 0", {"dropout": 0.0}),
        ("[fuse]\nseed = 5", {"seed": 5}),
        ("seed = 4\n[fuse]\nseed = 5\n[extract]\nseed = 6", {"seed": 5}),
    ],
)
def test_one_option_in_a_file(text, options, read):
    assert read(text, *FUSE)["options"] == FuseOptions(**options)


def test_a_required_option_may_stand_in_the_file(read):
    assert read('manifest = "other.csv"', "fuse")["manifest"] == Path("other.csv")


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (("--seeds", "2"), {"seeds": 2, "calibrate": False}),
        (("--calibrate",), {"seeds": 4}),
        (("--folds", "5"), {"seeds": 4, "folds": 5, "calibrate": False}),
    ],
)
def test_the_command_line_takes_precedence(given, options, read):
    assert read("seeds = 4\ncalibrate = false", *FUSE, *given)["options"] == FuseOptions(**options)


def test_tables_of_groups_of_commands(read):
    text = '[extract]\npool = "none"\nworkers = 2\n[extract.audio]\nworkers = 3\n[extract.faces]\nfps = 1\n'
    assert read(text, *AUDIO)["options"] == ExtractOptions(modality="audio", pool="none", workers=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sseds = 1", "unknown option 'sseds': did you mean 'seeds'? `mertool fuse --help` lists them"),
        ("learnin_rate = 1", "did you mean 'learning-rate'?"),
        ("config = 'a.toml'", "unknown option 'config'"),
        ("[fus]\nseeds = 1", "unknown table [fus]: did you mean 'fuse'?"),
        ("[fuse.attention]\nseeds = 1", "unknown table [attention]: there is none here"),
        ("seeds = 2.5", "--seeds 2.5: give a whole number"),
        ("seeds = true", "--seeds True: give a whole number"),
        ("seeds = 0", "--seeds 0: give at least 1"),
        ("calibrate = 'no'", "--calibrate no: give true or false"),
        ("quiet = 'no'", "quiet no: give true or false"),
        ("manifest = ['a']", "manifest ['a']: give one value"),
        ("head = 'atention'", "did you mean 'attention'?"),
        ("seeds = ", "cannot be read"),
        ("fuse = 3", "unknown option 'fuse'"),
    ],
)
def test_a_fault_in_a_file_is_named_with_the_file(text, words, read):
    with pytest.raises(MertoolError) as caught:
        read(text, *FUSE)
    assert words in str(caught.value)
    assert "mertool.toml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_faults_of_a_file_are_reported_at_once(read):
    with pytest.raises(MertoolError, match=r"mertool\.toml: 3 faults: .*sseds.*--batch.*atention"):
        read("sseds = 1\nbatch = 0\nhead = 'atention'", *FUSE)


def test_an_option_of_another_modality_is_unknown(read):
    with pytest.raises(MertoolError, match="unknown option 'fps'"):
        read("fps = 2", *AUDIO)


def test_a_file_that_does_not_exist(invoke):
    result = invoke("fuse", "a.h5", "-m", "m.csv", "-o", "run", "--config", "nowhere.toml")
    assert str(result.exception) == "--config nowhere.toml does not exist: give a TOML file"
