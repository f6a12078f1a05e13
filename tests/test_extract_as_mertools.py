"""Features as MERTools' scripts make them, compared with transformers run by the rules of these scripts."""

import numpy as np
import pytest
import torch
from PIL import Image

from mertool.errors import MertoolError
from mertool.exchange import import_store
from mertool.extraction.clip_encoder import EncoderAssets
from mertool.extraction.job_builder import build_job
from mertool.manifest import Manifest
from mertool.options.extract import ExtractOptions
from mertool.store import FeatureStore

CPU = torch.device("cpu")


def official_audio(folder, waveform: np.ndarray) -> np.ndarray:
    """The sum of the last four hidden states (T, D) of chunks of 10 s, the last one of which is filled with zeros."""
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    extractor, model = Wav2Vec2FeatureExtractor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    values = extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values
    if values.shape[1] > 160000:
        padded = torch.zeros(1, -(-values.shape[1] // 160000) * 160000)
        padded[:, : values.shape[1]] = values
        values = padded.view(-1, 160000)
    with torch.no_grad():
        outputs = model(values, output_hidden_states=True)
    # In transformers 4, with which the scripts were run, the last hidden state has passed the final LayerNorm.
    states = (*outputs.hidden_states[:-1], outputs.last_hidden_state)
    return torch.stack(states[-4:]).sum(0).flatten(0, 1).numpy()


@pytest.mark.parametrize("name", ["hubert", "hubert_group", "wav2vec2"])
@pytest.mark.parametrize("seconds", [3.3, 12.5])
def test_audio(name, seconds, tiny_encoders, load_tiny, tmp_path):
    waveform = np.random.default_rng(0).normal(0, 0.1, round(seconds * 16000)).astype(np.float32)
    encoder = load_tiny(name, "audio")
    encoder.set_window("mertools")
    blocks = encoder.num_layers
    (frames,) = encoder.encode([waveform], range(blocks - 3, blocks + 1))
    expected = official_audio(tiny_encoders[name], waveform)
    np.testing.assert_allclose(frames.sum(0).numpy(), expected, atol=2e-4)


def test_the_store_says_how_audio_was_cut(tiny_encoders, demo, write_manifest, call, tmp_path):
    manifest = write_manifest(tmp_path / "c.csv", [{"clip": "a", "path": str(demo / "clips" / "spk01_001.mp4")}])
    given = ["extract", "audio", manifest, "--encoder", tiny_encoders["hubert"], "--storage", "float32", "-q"]
    call(*given, "-o", tmp_path / "a.h5", "--as-mertools")
    call(*given, "-o", tmp_path / "b.h5", "--layers", "last-four-sum")
    with FeatureStore(tmp_path / "a.h5") as ours, FeatureStore(tmp_path / "b.h5") as plain:
        assert ours.recipe.layer_sum
        assert ours.recipe.media["window"] == "mertools"
        assert "window" not in plain.recipe.media
        assert not np.allclose(ours.read(), plain.read(), atol=1e-3)  # for the LayerNorm after the last block


def write_faces(folder, clips: dict[str, np.ndarray]) -> None:
    for clip, crops in clips.items():
        (folder / clip).mkdir(parents=True)
        np.save(folder / clip / f"{clip}.npy", crops)


def test_clip_features_of_imported_faces_without_media(tiny_encoders, call, tmp_path):
    from transformers import AutoImageProcessor, CLIPModel

    blue_first = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    write_faces(tmp_path / "openface_face", {"a": blue_first, "b": blue_first[:0]})
    import_store(tmp_path / "openface_face", tmp_path / "faces.h5", modality="faces")
    manifest = tmp_path / "c.csv"
    manifest.write_text("clip,path,label\n" + "".join(f"{clip},,sad\n" for clip in "abc"))
    given = ["extract", "video", manifest, "-o", tmp_path / "v.h5", "--encoder", tiny_encoders["clip_full"]]
    given += ["--faces", tmp_path / "faces.h5", "--as-mertools", "--storage", "float32"]
    call(*given, "--json")
    processor = AutoImageProcessor.from_pretrained(tiny_encoders["clip_full"])
    model = CLIPModel.from_pretrained(tiny_encoders["clip_full"]).eval()
    images = [Image.fromarray(frame[..., ::-1]) for frame in blue_first]
    with torch.no_grad():
        features = model.get_image_features(processor(images=images, return_tensors="pt")["pixel_values"])
    features = getattr(features, "pooler_output", features)
    with FeatureStore(tmp_path / "v.h5") as store:
        assert store.ids == ["a"]
        assert store.channels == features.shape[-1] == 16
        # Pixels are resized by torch here and by PIL there, within two grey levels.
        np.testing.assert_allclose(store.read(["a"])[0, 0], features.mean(0).numpy(), atol=2e-2)
        cosine = torch.nn.functional.cosine_similarity(torch.tensor(store.read(["a"])[0, 0]), features.mean(0), dim=0)
        assert cosine > 0.9995
        assert {failure.clip: failure.reason for failure in store.failures()} == {"b": "no_face", "c": "no_face"}
    assert '"cached": 1' in call(*given, "--json").stdout


def test_crops_of_the_encoders_size_give_clips_own_features_exactly(tiny_encoders):
    from transformers import CLIPModel

    from mertool import encoders

    reference = encoders.resolve_encoder(str(tiny_encoders["clip_full"]), "video")
    encoder = encoders.load_encoder(reference, "video", device=CPU, dtype=torch.float32)
    encoder.use_projection()
    crops = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    pixels = encoder.normalize_pixels(encoder.prepare(crops))
    (frames,) = encoder.encode([crops], [encoder.num_layers])
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(tiny_encoders["clip_full"]).eval().get_image_features(pixels)
    expected = getattr(expected, "pooler_output", expected)
    assert frames.shape == (1, 5, 16)
    torch.testing.assert_close(frames[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("modality", "name", "more", "message"),
    [
        ("audio", "whisper", {}, "MERTools takes the decoder"),
        ("video", "vit", {}, r"'.*' \(vit\) is no CLIP with a projection"),
        ("video", "clip_full", {"layers": "1"}, "the image features of --as-mertools follow the last layer"),
        ("text", "bert", {}, r"--as-mertools belongs to `extract audio\|video`"),
    ],
)
def test_what_mertools_does_otherwise_is_refused(modality, name, more, message, tiny_encoders, demo, tmp_path):
    with pytest.raises(MertoolError, match=message):
        options = ExtractOptions(modality=modality, encoder=str(tiny_encoders[name]), as_mertools=True, **more)
        build_job(Manifest.read(demo / "manifest.csv"), tmp_path / "s.h5", options)


def test_the_recipe_loads_the_same_encoder_again(tiny_encoders, demo, tmp_path):
    """As `predict` does."""
    options = ExtractOptions(modality="video", encoder=str(tiny_encoders["clip_full"]), as_mertools=True)
    _, job = build_job(Manifest.read(demo / "manifest.csv"), tmp_path / "s.h5", options)
    assert isinstance(job.encoder, EncoderAssets)
    assert job.encoder.load(job.targets, CPU).encoder.projects
    assert "image_projection" not in job.faces_target.recipe.media
