"""Recipes, their fingerprints, and spelling layers."""

import json
from dataclasses import fields, replace

import pytest

from mertool.errors import MertoolError
from mertool.features import Recipe, aligner_input_recipe, format_layers, parse_layers

RECIPE = Recipe(
    modality="audio", encoder="hubert", weights="w0", layers=(0, 1), pool="mean", media={"sample_rate": 16_000}
)
OTHER = {
    "modality": "video",
    "encoder": "clip",
    "weights": "w1",
    "layers": (1,),
    "pool": "none",
    "compute_dtype": "bfloat16",
    "storage_dtype": "float32",
    "media": {"sample_rate": 8_000},
    "adapter": "d",
    "aligner": "d",
    "preprocessing": 2,
    "layer_sum": True,
}


def test_a_recipe_survives_json():
    assert Recipe.from_json(json.loads(json.dumps(RECIPE.to_json()))) == RECIPE


def test_every_field_changes_the_fingerprint():
    assert set(OTHER) == {field.name for field in fields(Recipe)}
    prints = {replace(RECIPE, **{name: value}).fingerprint for name, value in OTHER.items()}
    assert len(prints | {RECIPE.fingerprint}) == len(OTHER) + 1


def test_a_recipe_from_before_sums_of_layers_keeps_its_fingerprint():
    before = {name: value for name, value in RECIPE.to_json().items() if name != "layer_sum"}
    assert before == RECIPE.to_json()
    assert Recipe.from_json(before) == RECIPE


def test_a_sum_of_layers_is_one_entry():
    summed = replace(RECIPE, layers=(9, 10, 11, 12), layer_sum=True)
    assert summed.layer_axis == (12,)
    assert replace(summed, layer_sum=False).layer_axis == (9, 10, 11, 12)
    assert "layer sum: None there, True here" in summed.differences(replace(summed, layer_sum=False))


def test_equal_recipes_have_equal_fingerprints():
    assert replace(RECIPE).fingerprint == Recipe.from_json(RECIPE.to_json()).fingerprint == RECIPE.fingerprint


def test_differences_in_words():
    other = replace(RECIPE, encoder="wavlm", storage_dtype="float32")
    assert RECIPE.differences(other) == "encoder: wavlm there, hubert here; storage dtype: float32 there, float16 here"
    assert RECIPE.differences(RECIPE) == ""


def test_an_unknown_pooling():
    with pytest.raises(MertoolError, match=r"unknown pooling 'max': .*valid: mean, mean-std, none"):
        replace(RECIPE, pool="max")


def test_frames_an_aligner_is_trained_on():
    aligned = Recipe(modality="video", encoder="clip", weights="w", layers=(12,), pool="mean", aligner="d")
    assert aligner_input_recipe(aligned) == Recipe(
        modality="video", encoder="clip", weights="w", layers=(12,), pool="none"
    )


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", tuple(range(25))),
        ("last", (24,)),
        ("16-18", (16, 17, 18)),
        ("12, 0,6", (0, 6, 12)),
        ("16-18,24,last,17", (16, 17, 18, 24)),
        (" LAST ", (24,)),
    ],
)
def test_layers_are_parsed(text, layers):
    assert parse_layers(text, 24) == layers


@pytest.mark.parametrize("text", ["", "x", "1-", "-3", "1-2-3", "1,,2", "1.5", "²"])
def test_layers_that_cannot_be_read(text):
    with pytest.raises(
        MertoolError,
        match=r"cannot be read; valid: all, last, last-four-sum, a range as 16-21 .* 0 \(embedding\) to 24",
    ):
        parse_layers(text, 24)


def test_layers_that_run_backwards():
    with pytest.raises(MertoolError, match="layers '1,6-3': 6-3 runs backwards, write 3-6"):
        parse_layers("1,6-3", 24)


@pytest.mark.parametrize("text", ["25", "20-30"])
def test_layers_that_are_not_there(text):
    with pytest.raises(MertoolError, match="are not in this encoder; valid"):
        parse_layers(text, 24)


@pytest.mark.parametrize(
    ("layers", "text"), [((16, 17, 18), "16-18"), ([5], "5"), ((0, 6, 12), "0,6,12"), ((3, 2), "2-3"), ((), "")]
)
def test_layers_are_spelled_shortly(layers, text):
    assert format_layers(layers) == text


def test_a_spelling_is_read_again():
    for layers in ((16, 17, 18), (0, 6, 12), (5,)):
        assert parse_layers(format_layers(layers), 24) == layers
