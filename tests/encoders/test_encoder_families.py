"""The contract of an encoder family, for every model type that a file of mertool/encoders/families names.

The checkpoint of a model type is made from its own configuration class with small sizes, so a new file is tested as
soon as it exists. A type that needs other settings gets an entry in SETTINGS.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.encoders import READ, SIGHT, WAVE, make_tokenizer
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from mertool import encoders
from mertool.encoders.base import Encoder
from mertool.encoders.families import family_for, known_families
from mertool.encoders.hidden_states import truncate_after
from mertool.errors import MertoolError

CASES = [(family.name, kind) for family in known_families().values() for kind in family.model_types]
TEXT = {**READ, "vocab_size": 60, "max_position_embeddings": 64, "num_key_value_heads": 4}
SMALL = {"audio": WAVE, "video": SIGHT, "text": TEXT}
TOWERS = {"vision_config": SIGHT, "text_config": TEXT}
SETTINGS = {
    "data2vec-audio": {**WAVE, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5},
    "clip": TOWERS,
    "siglip": TOWERS,
    "whisper": {
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "vocab_size": 60,
        "num_mel_bins": 80,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
}
SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def items_of(modality: str) -> list:
    """Return three clips of different lengths, the second the shortest."""
    random = np.random.default_rng(0)
    if modality == "audio":
        return [random.normal(0, 0.1, samples).astype(np.float32) for samples in (17_000, 9_000, 13_000)]
    if modality == "video":
        return [random.integers(0, 256, (frames, 64, 64, 3), np.uint8) for frames in (3, 1, 6)]
    return ["we lost the dog again and i am so sad", "wow", "what a day"]


def make_checkpoint(folder: Path, model_type: str, modality: str) -> None:
    """Save a model of a type with small sizes and random weights, and what prepares its inputs."""
    settings = SETTINGS.get(model_type, SMALL[modality])
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(model_type, **settings)).save_pretrained(folder)
    if model_type == "whisper":
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    elif modality == "audio":
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
    elif modality == "text":
        make_tokenizer(SPECIAL, wrap=True).save_pretrained(folder)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[1])
def checkpoint(request, tmp_path_factory):
    """The checkpoint of one model type, and its modality."""
    name, model_type = request.param
    modality = known_families()[name].modality
    folder = tmp_path_factory.mktemp("families") / model_type
    make_checkpoint(folder, model_type, modality)
    return encoders.resolve_encoder(str(folder), modality), modality, name


@pytest.fixture
def encoder(checkpoint) -> Encoder:
    ref, modality, _ = checkpoint
    return encoders.load_encoder(ref, modality, device=torch.device("cpu"), dtype=torch.float32)


def states_of(encoder: Encoder, items: list) -> list[torch.Tensor]:
    return encoder.encode(items, tuple(range(encoder.num_layers + 1)))


def near(states: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool(torch.linalg.norm(states - expected) <= 1e-4 * torch.linalg.norm(expected))


def test_the_family_of_a_checkpoint_is_found_by_its_model_type(checkpoint):
    ref, modality, name = checkpoint
    assert ref.family(modality).name == name


def test_the_number_of_layers_is_known_without_loading(checkpoint, encoder):
    assert encoders.count_layers(checkpoint[0]) == encoder.num_layers == len(encoder.blocks)


def test_hidden_states_are_float32_by_layer_time_and_channel(checkpoint, encoder):
    items = items_of(checkpoint[1])
    every = states_of(encoder, items)
    for states in every:
        assert (states.dtype, len(states), states.shape[2]) == (torch.float32, encoder.num_layers + 1, encoder.channels)
        assert states.isfinite().all()
    lengths = [states.shape[1] for states in every]
    assert min(lengths) == lengths[1] > 0


def test_a_clip_alone_and_in_a_batch_has_the_same_hidden_states(checkpoint, encoder):
    items = items_of(checkpoint[1])
    for item, batched in zip(items, states_of(encoder, items), strict=True):
        (alone,) = states_of(encoder, [item])
        assert alone.shape == batched.shape
        assert near(batched, alone)


def test_layers_come_in_the_order_asked(checkpoint, encoder):
    item = items_of(checkpoint[1])[0]
    (every,) = states_of(encoder, [item])
    (chosen,) = encoder.encode([item], (2, 0, encoder.num_layers))
    assert torch.equal(chosen, every[[2, 0, encoder.num_layers]])


@pytest.mark.parametrize("layer", [1, 2])
def test_layer_n_is_the_output_of_block_n(layer, checkpoint, encoder):
    """A change of a block's output shows in its layer as it is, in the layers above, and in no layer below."""
    item = items_of(checkpoint[1])[0]
    (before,) = states_of(encoder, [item])

    def rotate(_module, _inputs, output):
        return (output[0].roll(1, -1), *output[1:]) if isinstance(output, tuple) else output.roll(1, -1)

    encoder.blocks[layer - 1].register_forward_hook(rotate)
    (after,) = states_of(encoder, [item])
    assert torch.equal(after[:layer], before[:layer])
    assert torch.equal(after[layer], before[layer].roll(1, -1))
    assert not near(after[layer + 1], before[layer + 1])


def test_layers_do_not_depend_on_the_blocks_above(checkpoint, encoder):
    item = items_of(checkpoint[1])[0]
    (before,) = encoder.encode([item], (1, 2))
    truncate_after(encoder.blocks, 2)
    assert torch.equal(encoder.encode([item], (1, 2))[0], before)


def test_a_longer_clip_costs_at_least_as_much(checkpoint, encoder):
    costs = [encoder.cost(encoder.prepare(item)) for item in items_of(checkpoint[1])]
    assert 0 < costs[1] == min(costs)


# ---------------------------------------------------------------- the folder


def test_a_model_type_has_one_family():
    kinds = [kind for _, kind in CASES]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize(
    ("model_type", "modality", "family"),
    [("deberta-v2", "text", "text-transformer"), ("beit", "video", "vision-transformer"), ("sew", "audio", "wav2vec2")],
)
def test_other_model_types_go_to_the_family_of_their_modality_that_takes_them(model_type, modality, family):
    assert family_for(model_type, modality).name == family


def test_a_model_type_of_another_modality_is_refused():
    with pytest.raises(MertoolError, match=r"a model of type 'hubert' \(wav2vec2\) encodes audio"):
        family_for("hubert", "text")


NEW_FAMILY = '''"""GPT-2."""

from mertool.encoders.families.text_transformer import load as load

MODALITY = "text"
MODEL_TYPES = ("gpt2",)
'''


def test_a_new_file_is_a_family(tmp_path, monkeypatch, invoke):
    """Its literals are read from the file, so it need not be imported to be known."""
    from mertool import registry

    folder = tmp_path / "encoders" / "families"
    folder.mkdir(parents=True)
    for name in registry.choices("encoders.families"):
        file = f"{name.replace('-', '_')}.py"
        (folder / file).write_text((registry.ROOT / "encoders" / "families" / file).read_text(encoding="utf-8"))
    (folder / "gpt.py").write_text(NEW_FAMILY)
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    known_families.cache_clear()
    try:
        assert family_for("gpt2", "text").name == "gpt"
        assert "gpt2" in invoke("models", "--json", "--modality", "text").stdout
        with pytest.raises(MertoolError, match=r"a model of type 'gpt2' \(gpt\) encodes text"):
            family_for("gpt2", "audio")
    finally:
        monkeypatch.undo()
        known_families.cache_clear()
