"""Options: types, ranges and choices are checked from the declarations, all faults at once, then contradictions."""

import re
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, asdict, dataclass
from math import inf, nan
from pathlib import Path

import pytest

from mertool import encoders
from mertool.errors import MertoolError
from mertool.options import Options, option, options_of, shared
from mertool.options.align import AlignOptions
from mertool.options.evaluate import EvaluateOptions
from mertool.options.extract import EXTRACTED, ExtractOptions
from mertool.options.finetune import FinetuneOptions
from mertool.options.fuse import FuseOptions
from mertool.options.manifest import ManifestOptions
from mertool.options.predict import PredictOptions
from mertool.options.probe_layers import ProbeLayersOptions

STAGES = (
    AlignOptions,
    EvaluateOptions,
    ExtractOptions,
    FinetuneOptions,
    FuseOptions,
    ManifestOptions,
    PredictOptions,
    ProbeLayersOptions,
)


@dataclass(frozen=True, kw_only=True)
class BakeOptions(Options):
    """Options of a stage that there is not."""

    heat: float = option(180.0, help="Heat of the oven.", above=0, maximum=300, unit="degrees")
    layers: int | None = option(None, help="Layers.", minimum=1, default_help="as many as fit")
    flour: str = option("wheat", help="Flour", choices={"wheat": "", "rye": "sour"})
    tins: tuple[Path, ...] = option((), help="Tins.")
    sugar: bool = option(True, help="Sweet.")
    folds: int | Path = shared.folds()
    oven: str = option("left", help="Oven.", affects_result=False, only_for=("bread",))

    def conflicts(self) -> Iterator[str]:
        if self.sugar and self.flour == "rye":
            yield "--sugar is not for rye"
        if self.layers == 7:
            yield "--layers 7 falls over"


def fault(**values) -> str:
    with pytest.raises(MertoolError) as caught:
        BakeOptions(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 0}, "--heat 0: give more than 0 degrees and at most 300 degrees"),
        ({"heat": 301}, "--heat 301: give more than 0 degrees and at most 300 degrees"),
        ({"heat": nan}, "--heat nan: give more than 0 degrees and at most 300 degrees"),
        ({"heat": "hot"}, "--heat hot: give a number"),
        ({"heat": None}, "--heat None: give a number"),
        ({"layers": 0}, "--layers 0: give at least 1"),
        ({"layers": 2.5}, "--layers 2.5: give a whole number"),
        ({"layers": True}, "--layers True: give a whole number"),
        ({"sugar": 1}, "--sugar 1: give true or false"),
        ({"flour": "whet"}, "unknown flour 'whet': did you mean 'wheat'? valid: wheat, rye"),
        ({"tins": "a tin"}, "--tins a tin: give a list of paths"),
        ({"tins": [1]}, "--tins [1]: give a list of paths"),
        ({"folds": 1}, "--folds 1: give a number from 2 to 1000"),
        ({"folds": 2.5}, "--folds 2.5: give a whole number or a path"),
    ],
)
def test_options_that_are_not_valid(values, message):
    assert fault(**values) == message


def test_options_report_all_faults_at_once():
    message = fault(heat=-1, layers=0, flour="oats")
    assert message.startswith("options: 3 faults: --heat -1: ")
    assert "--layers 0: give at least 1" in message
    assert "unknown flour 'oats'" in message


def test_options_that_contradict_each_other_are_all_reported():
    message = fault(flour="rye", layers=7)
    assert message == "options: 2 faults: --sugar is not for rye; --layers 7 falls over"


def test_contradictions_are_looked_for_among_valid_options_only():
    assert fault(flour="rye", heat=0) == "--heat 0: give more than 0 degrees and at most 300 degrees"


def test_equal_options_are_equal_however_they_are_given():
    """A key of a run is made of them, so 200 and 200.0 must not differ."""
    options = BakeOptions(heat=200, tins=["a", Path("b")], folds="3")
    assert options == BakeOptions(heat=200.0, tins=(Path("a"), Path("b")), folds=3)
    assert repr(options.heat) == "200.0"
    assert BakeOptions(folds="folds.csv").folds == Path("folds.csv")


def test_options_are_frozen_and_keyword_only():
    with pytest.raises(TypeError):
        BakeOptions(200)
    with pytest.raises(FrozenInstanceError):
        BakeOptions().heat = 3.0


def test_options_that_do_not_affect_the_result_are_not_in_the_key():
    assert set(asdict(BakeOptions())) - set(BakeOptions().affecting_result()) == {"oven"}


def test_options_of_one_command():
    assert [declared.name for declared in options_of(BakeOptions, "cake")][-1] == "folds"
    assert [declared.name for declared in options_of(BakeOptions, "bread")][-1] == "oven"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, ""),
        ({"minimum": 1}, "at least 1"),
        ({"above": 0, "unit": "seconds"}, "more than 0 seconds"),
        ({"minimum": 0, "below": 1}, "a number from 0 to below 1"),
        ({"minimum": 0, "maximum": 0.9}, "a number from 0 to 0.9"),
        ({"above": 0, "below": 1}, "a number between 0 and 1"),
        ({"minimum": 0, "below": inf}, "at least 0"),
    ],
)
def test_ranges_in_words(limits, words):
    assert option(0.5, help="Some share.", **limits).metadata["option"].range_text == words


def test_help_lists_choices_and_ranges():
    texts = {declared.name: declared.full_help for declared in options_of(BakeOptions)}
    assert texts["flour"] == "Flour: wheat or rye (sour)."
    assert texts["layers"] == "Layers (at least 1)."
    assert texts["sugar"] == "Sweet."


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
def test_every_option_of_a_stage_is_declared_and_its_default_is_valid(stage):
    for declared in options_of(stage):
        assert declared.help[0].isupper() or declared.name in ("layers", "shard"), declared.name
        assert declared.help.endswith("."), declared.name
        assert not re.search(r"default", declared.full_help), (
            f"{declared.name}: the default is declared, and shown beside the help"
        )
        if declared.default is not None:
            assert declared.convert(declared.default) == declared.default


@pytest.mark.parametrize("modality", EXTRACTED)
def test_options_of_extract_that_are_of_another_modality(modality):
    with pytest.raises(MertoolError, match=r"--faces belongs to `extract video`|--asr belongs to `extract text`"):
        ExtractOptions(modality=modality, faces=Path("faces.h5"), asr="whisper-base")


def test_the_default_encoders_in_the_help_are_those_of_the_table():
    shown = {name: next(iter(options_of(ExtractOptions, name))).default_help for name in encoders.DEFAULT_ENCODERS}
    assert {name: text.split()[-1] for name, text in shown.items()} == encoders.DEFAULT_ENCODERS
    assert options_of(FinetuneOptions)[2].default_help.split()[-1] == encoders.DEFAULT_ENCODERS["audio"]


def test_a_registry_folder_is_the_list_of_choices():
    with pytest.raises(MertoolError, match="unknown loss 'infonec': did you mean 'infonce'"):
        AlignOptions(loss="infonec")
    with pytest.raises(MertoolError, match="unknown PEFT method 'loar': did you mean 'lora'"):
        FinetuneOptions(layers="1", compare=("bitfit", "loar"))
