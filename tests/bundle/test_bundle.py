"""A bundle: its files, moving it, and the errors for a bundle that is incomplete or was changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.func import stack_module_state

from mertool import bundle
from mertool.bundle import Bundle, Correction, EnsembleWeights, FeatureSpec
from mertool.bundle.layout import encoder_folder
from mertool.encoders import CheckpointRef
from mertool.errors import MertoolError
from mertool.features import Recipe
from mertool.fusion.heads import HeadSpec
from mertool.runs import Run, cache_key, new_run
from mertool.store import ClipFeatures, FeatureStore, StoreWriter

CLASSES = ["neutral", "angry", "happy"]
SHAPES = [(2, 8), (16, 4)]
CORRECTION = Correction(2.0, (0.5, 0.25, 0.25), (0.25, 0.25, 0.5))


def trained(folder: Path, stage: str, inside: str, extra: str) -> Run:
    """A run of `finetune` or `align` with one file of tensors, its JSON beside it, and one file no bundle needs."""
    with new_run(folder, stage, key=cache_key(stage, {}, {}), options={}) as draft:
        (draft.folder / inside).mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.ones(3)}, draft.folder / inside / "adapter_model.safetensors")
        (draft.folder / inside / extra).write_text("{}")
        (draft.folder / inside / "plot.png").write_text("picture")
    return Run.read(folder, stage)


@pytest.fixture
def stores(tmp_path, tiny_encoders):
    """An adapted audio store and a store of frames through an aligner, of one local encoder that may be changed."""
    encoder = tmp_path / "from" / "encoder"
    shutil.copytree(tiny_encoders["hubert_group"], encoder)
    (encoder / "notes.py").write_text("no part of a model")
    adapter = trained(tmp_path / "from" / "acoustic", "finetune", "adapters/final", "adapter_config.json")
    aligner = trained(tmp_path / "from" / "visual", "align", ".", "other.json")
    source = CheckpointRef(name="encoder", folder=encoder, checkpoint=str(encoder))
    audio = Recipe(
        modality="audio",
        encoder="encoder",
        weights=source.digest(),
        layers=(3, 4),
        pool="mean",
        media={"rate": 16},
        adapter=adapter.digest(),
    )
    video = Recipe(
        modality="video",
        encoder="encoder",
        weights=source.digest(),
        layers=(4,),
        pool="none",
        media={"fps": 5},
        aligner=aligner.digest(),
    )
    origins = {"adapter": str(adapter.folder), "aligner": str(aligner.folder)}
    paths = []
    for name, recipe, shape in (("acoustic", audio, (2, 8)), ("sight", video, (5, 4))):
        origin = {"encoder": source.to_json(), **{what: origins[what] for what in origins if getattr(recipe, what)}}
        paths.append(tmp_path / f"{name}.h5")
        with StoreWriter(paths[-1], recipe, origin) as writer:
            writer.add(ClipFeatures("a", "digest", np.zeros(shape, np.float32)))
            writer.finish(["a"])
    return paths


def specs_of(paths: list[Path]) -> list[FeatureSpec]:
    parts = []
    for path in paths:
        with FeatureStore(path) as store:
            parts.append(bundle.describe_features(store))
    return parts


def group(width: int, count: int, seed: int) -> EnsembleWeights:
    torch.manual_seed(seed)
    heads = [HeadSpec("attention", SHAPES, 3).build(width=width, dropout=0.1) for _ in range(count)]
    parameters, buffers = stack_module_state(heads)
    return EnsembleWeights(
        head="attention",
        width=width,
        dropout=0.1,
        state={**parameters, **buffers},
        fold=tuple(range(count)),
        seed=(seed,) * count,
    )


def fused(folder: Path, parts: list[FeatureSpec], groups: list[EnsembleWeights]) -> Path:
    facts = {"classes": CLASSES, "class_counts": {"neutral": 3, "angry": 5, "happy": 4}}
    with new_run(folder, "fuse", key="key", options={}, **facts) as draft:
        bundle.write(draft, parts, groups=groups, correction=CORRECTION)
    return folder


@pytest.fixture
def made(stores, tmp_path):
    """A bundle of two groups of members, five in all."""
    return fused(tmp_path / "bundle", specs_of(stores), [group(4, 2, 0), group(6, 3, 1)])


@pytest.fixture
def features():
    torch.manual_seed(0)
    present = torch.tensor([[True, True], [True, False], [False, True]])
    return [torch.randn(3, *shape) for shape in SHAPES], present


# ---------------------------------------------------------------- what is inside


def test_the_files_are_those_the_chain_needs(made):
    names = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}
    encoder = {name for name in names if name.startswith("encoders/")}
    assert {Path(name).name for name in encoder} >= {"config.json", "model.safetensors"}
    assert len({Path(name).parent for name in encoder}) == 1  # both parts share it
    assert not any(name.endswith((".py", ".bin", ".png")) for name in names)
    assert names - encoder == {
        *("run.json", "metrics.json", "members-0.safetensors", "members-1.safetensors"),
        *("part0/adapters/final/adapter_model.safetensors", "part0/adapters/final/adapter_config.json"),
        *("part1/aligner/run.json", "part1/aligner/adapter_model.safetensors"),
    }
    assert set(json.loads((made / "run.json").read_text())["files"]) == names - {"run.json"}


def test_what_a_part_says(made):
    opened = Bundle.open(made)
    assert [(part.name, part.modality, part.spans) for part in opened.feature_specs] == [
        ("acoustic", "audio", None),
        ("sight", "video", 16),
    ]
    assert opened.shapes == SHAPES
    assert opened.classes == tuple(CLASSES)
    assert opened.correction == CORRECTION
    assert opened.feature_specs[1].recipe.media == {"fps": 5}


def test_new_clips_get_the_adapter_trained_on_all_folds(made):
    opened = Bundle.open(made)
    adapted, plain = (opened.recipe_of(part) for part in opened.feature_specs)
    assert adapted.adapter == f"{opened.feature_specs[0].recipe.adapter}:final"
    assert plain == opened.feature_specs[1].recipe


# ---------------------------------------------------------------- scoring


def test_members_vote_by_the_mean_of_their_logits(made, features):
    opened = Bundle.open(made)
    single = []
    for members in (group(4, 2, 0), group(6, 3, 1)):
        for number in range(len(members.fold)):
            head = HeadSpec("attention", SHAPES, 3).build(width=members.width).eval()
            head.load_state_dict({name: value[number] for name, value in members.state.items()})
            with torch.no_grad():
                single.append(head(*features))
    torch.testing.assert_close(opened.ensemble_logits(*features), torch.stack(single))
    torch.testing.assert_close(opened.logits(*features), torch.stack(single).mean(0))


def test_probabilities_have_temperature_and_priors_in_them(made, features):
    opened = Bundle.open(made)
    logits = opened.logits(*features)
    expected = (logits.double() / 2).softmax(1) * torch.tensor([0.5, 1.0, 2.0])
    found = opened.probabilities(logits)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))


def test_members_that_do_not_fit_their_head_are_refused(stores, tmp_path, features):
    wrong = replace(group(4, 2, 0), width=5)
    run = fused(tmp_path / "bundle", specs_of(stores), [wrong])
    with pytest.raises(MertoolError, match="does not fit the head 'attention'"):
        Bundle.open(run).logits(*features)


# ---------------------------------------------------------------- moving


def test_it_works_elsewhere_when_all_it_was_made_of_is_gone(made, features, tmp_path):
    before = Bundle.open(made).logits(*features)
    (tmp_path / "other").mkdir()
    shutil.move(made, tmp_path / "other" / "moved")
    shutil.rmtree(tmp_path / "from")
    opened = Bundle.open(tmp_path / "other" / "moved")
    assert torch.equal(opened.logits(*features), before)
    for part in opened.feature_specs:
        source = opened.encoder_of(part)
        assert source.digest() == part.recipe.weights
        assert source.folder.is_relative_to(opened.run.folder)
    assert (opened.adapters_of(opened.feature_specs[0]) / "final" / "adapter_config.json").exists()
    assert (opened.aligner_of(opened.feature_specs[1]) / "run.json").exists()
    assert opened.aligner_of(opened.feature_specs[0]) is None


@pytest.fixture
def without_encoder(stores, tmp_path, monkeypatch):
    """A bundle whose encoder was too large to be copied."""
    monkeypatch.setattr("mertool.bundle.feature_spec.COPY_BYTES", 10)
    return fused(tmp_path / "bundle", specs_of(stores), [group(4, 1, 0)])


def test_a_large_encoder_is_read_from_its_own_folder(without_encoder, tmp_path):
    opened = Bundle.open(without_encoder)
    assert not (without_encoder / "encoders").exists()
    assert opened.encoder_of(opened.feature_specs[0]).folder == tmp_path / "from" / "encoder"


def test_a_large_encoder_that_is_not_there_can_be_put_into_the_bundle(without_encoder, tiny_encoders, tmp_path):
    shutil.rmtree(tmp_path / "from" / "encoder")
    opened = Bundle.open(without_encoder)
    part = opened.feature_specs[0]
    place = without_encoder / encoder_folder(part.recipe.weights)
    with pytest.raises(MertoolError, match=f"copy its model folder .weights {part.recipe.weights}. to {place}"):
        opened.encoder_of(part)
    shutil.copytree(tiny_encoders["hubert_group"], place)
    assert Bundle.open(without_encoder).encoder_of(part).folder == place


def test_another_encoder_in_its_place_is_refused(without_encoder, tiny_encoders, tmp_path):
    shutil.rmtree(tmp_path / "from" / "encoder")
    shutil.copytree(tiny_encoders["wav2vec2_group"], tmp_path / "from" / "encoder")
    opened = Bundle.open(without_encoder)
    with pytest.raises(MertoolError, match=r"is not the one of .* copy the right model folder to"):
        opened.encoder_of(opened.feature_specs[0])


def test_features_of_unknown_origin_cannot_be_made_again(stores, tmp_path):
    parts = specs_of(stores)
    parts[1] = replace(parts[1], provenance={"aligner": parts[1].provenance["aligner"]})
    opened = Bundle.open(fused(tmp_path / "bundle", parts, [group(4, 1, 0)]))
    with pytest.raises(MertoolError, match=r"features 'sight' .* were made elsewhere, their encoder is not known"):
        opened.encoder_of(opened.feature_specs[1])


# ---------------------------------------------------------------- missing and changed


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_everything_missing_or_changed_is_named_at_once(made):
    flip(made / "members-1.safetensors")
    flip(next(made.glob("encoders/*/model.safetensors")))
    shutil.rmtree(made / "part0")
    with pytest.raises(MertoolError) as caught:
        Bundle.open(made)
    message = str(caught.value)
    assert "4 faults" in message
    assert "members-1.safetensors was changed" in message
    assert "/model.safetensors was changed" in message
    assert "part0/adapters/final/adapter_config.json is missing" in message
    assert "part0/adapters/final/adapter_model.safetensors is missing" in message
    assert "\n" not in message


def test_a_change_of_any_file_is_detected(made):
    for name in Bundle.open(made).run.info["files"]:
        flip(made / name)
        with pytest.raises(MertoolError, match=f"1 fault: {name} was changed"):
            Bundle.open(made)
        flip(made / name)
    Bundle.open(made)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["classes"].reverse(),
        lambda info: info["correction"].update(temperature=1.0),
        lambda info: info["parts"][0]["recipe"]["media"].update(rate=8),
        lambda info: info["members"].pop(),
    ],
)
def test_a_change_of_run_json_is_detected(made, change):
    info = json.loads((made / "run.json").read_text())
    change(info)
    (made / "run.json").write_text(json.dumps(info))
    with pytest.raises(MertoolError, match=r"run\.json was changed"):
        Bundle.open(made)


def test_paths_of_origin_may_change(made):
    info = json.loads((made / "run.json").read_text())
    info["parts"][0]["origin"]["adapter"] = "/elsewhere"
    (made / "run.json").write_text(json.dumps(info))
    Bundle.open(made)


@pytest.mark.parametrize("missing", ["files", "members", "seal"])
def test_a_run_that_is_no_bundle(made, missing):
    info = json.loads((made / "run.json").read_text())
    del info[missing]
    (made / "run.json").write_text(json.dumps(info))
    with pytest.raises(MertoolError, match=f"cannot be read .it lacks {missing}.: run `mertool fuse` again"):
        Bundle.open(made)


@pytest.mark.parametrize("name, value", [("parts", 3), ("files", ["x"]), ("parts", [{}])])
def test_nonsense_in_run_json_is_one_line(made, name, value):
    info = json.loads((made / "run.json").read_text())
    info[name] = value
    (made / "run.json").write_text(json.dumps(info))
    with pytest.raises(MertoolError) as caught:
        Bundle.open(made)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- before the long work


def test_adapters_and_aligners_that_changed_or_are_gone_are_named_at_once(stores, tmp_path):
    parts = specs_of(stores)
    bundle.check_provenance(parts)
    flip(tmp_path / "from" / "acoustic" / "adapters" / "final" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "from" / "visual")
    flip(tmp_path / "from" / "encoder" / "model.safetensors")
    with pytest.raises(MertoolError) as caught:
        bundle.check_provenance(parts)
    message = str(caught.value)
    assert "4 faults" in message
    assert "store 'acoustic' was made with an adapter that is no longer in" in message
    assert "store 'sight': " in message
    assert "visual is not a run" in message
    assert message.count("is not the one it was made with") == 2


def test_an_encoder_without_safetensors_is_named_by_digest(stores, tmp_path):
    """Nothing that could be a pickle is put into a bundle."""
    encoder = tmp_path / "from" / "encoder"
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    weights = CheckpointRef(name="encoder", folder=encoder, checkpoint=str(encoder)).digest()
    parts = [replace(part, recipe=replace(part.recipe, weights=weights)) for part in specs_of(stores)]
    made = fused(tmp_path / "bundle", parts, [group(4, 1, 0)])
    assert not (made / "encoders").exists()
    opened = Bundle.open(made)
    assert opened.encoder_of(opened.feature_specs[0]).folder == encoder
