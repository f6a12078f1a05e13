"""Probes, adapters, alignment and fusion train on an emulated device, and on a real GPU, as they do on the CPU.

On an emulated device random numbers are those of the CPU, and the values agree to rounding. On a real one they are
others, so dropout is off there, and values may differ by its rounding, which training magnifies. The many variants run
on `mps`, which refuses all that `cuda` refuses; what one of them shows for both stands for all.
"""

import numpy as np
import pytest
import torch
from fixtures.emulated_device import DEVICES, STRICTEST_DEVICES, emulate, use_device

from mertool import encoders, registry
from mertool.adapters import methods as peft_methods
from mertool.adapters.cross_validation import AdapterSplit
from mertool.adapters.data import AdaptationData
from mertool.adapters.evaluation import evaluate_adapter, measure_mean_offset
from mertool.adapters.layer_probes import FrozenProbes
from mertool.adapters.setup import AdapterConfig, prepare
from mertool.adapters.trainer import train_adapter
from mertool.alignment import losses, trainer
from mertool.alignment.data import AlignmentData, FrameStream
from mertool.alignment.encoding import encode_distributed
from mertool.alignment.false_negatives import FalseNegativeFilter
from mertool.alignment.targets import split_clips
from mertool.encoders.aligner import Aligner
from mertool.fusion.cross_validation import EnsembleConfig, train_ensemble
from mertool.fusion.hyperparameters import Trial
from mertool.fusion.modality_features import FusionData, ModalityFeatures
from mertool.fusion.self_training import SelfTraining, self_train
from mertool.fusion.trainer import FusionTraining
from mertool.learning.accelerator import make_accelerator
from mertool.learning.checkpoint import Checkpoint
from mertool.learning.folds import Folds
from mertool.learning.labelled_clips import IGNORE_INDEX, LabelledClips
from mertool.options.align import AlignOptions
from mertool.probing.probes import ProbePlan, probe_all
from mertool.probing.progress import ProgressSpan
from mertool.store import FeatureStore
from mertool.targets import Classes

CPU = torch.device("cpu")
METHODS = registry.choices(peft_methods.PACKAGE)
HEADS, LOSSES = registry.choices("fusion.heads"), registry.choices(losses.PACKAGE)


@pytest.fixture(params=STRICTEST_DEVICES)
def kind(request):
    return request.param


@pytest.fixture
def dropout(kind):
    """The rate of dropout of the tests."""
    return 0.0 if kind == "gpu" else 0.2


def assert_alike(kind, compute, tolerance=1e-4):
    """Assert that `compute` gives nearly the same arrays, by name, for the CPU and for the device."""
    expected = compute(CPU)
    with use_device(kind) as device:
        found = compute(device)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        values, others = (np.asarray(each, np.float64) for each in (values, found[name]))
        if kind == "gpu":
            assert np.linalg.norm(others - values) <= 0.1 * np.linalg.norm(values), name
        else:
            np.testing.assert_allclose(others, values, rtol=tolerance, atol=10 * tolerance, err_msg=name)


def labelled_clips(labels):
    return LabelledClips(tuple(f"c{n}" for n in range(len(labels))), labels, (None,) * len(labels))


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize("kind", DEVICES, indirect=True)
@pytest.mark.parametrize("estimator", ["logistic", "ridge"])
def test_probes(estimator, kind):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    values = (rng.normal(0, 1, (60, 2, 6)) + labels[:, None, None]).astype(np.float32)
    folds, mlp = Folds(np.arange(60) % 3, 3, "made"), kind != "gpu"  # the perceptron has dropout

    def probe(device):
        plan = ProbePlan(
            repetitions=[folds], seeds=[0], target=Classes(("a", "b", "c")), estimator=estimator, mlp=mlp, device=device
        )
        results = probe_all(values, labelled_clips(labels), plan, progress=ProgressSpan(lambda *_: None))
        found = {"logits": results.linear.logits, "layer_weights": results.layer_weights}
        return found | ({"mlp": results.mlp} if mlp else {})

    assert_alike(kind, probe, 1e-3)


# ---------------------------------------------------------------- adapters

N_CLIPS = 12
SPLIT = AdapterSplit(name="fold0", train=np.arange(8), held_out=np.arange(8, 10))


@pytest.fixture
def train(tiny_encoders):
    """A function (device, dtype, ...) that trains and evaluates an adapter of ten labelled and two unlabelled clips."""

    def run(device, dtype=torch.float32, *, from_frontend=False, encoder_name="hubert", **options):
        source = encoders.resolve_encoder(str(tiny_encoders[encoder_name]), "audio")
        encoder = encoders.load_encoder(source, "audio", device=device, dtype=torch.float32)
        rng = np.random.default_rng(0)
        channels = encoder.model.config.conv_dim[-1] if from_frontend else encoder.channels
        frames = [rng.normal(row % 2, 1, (5 + row % 3, channels)).astype(np.float32) for row in range(N_CLIPS)]
        labels = np.array([row % 2 for row in range(N_CLIPS)])
        labels[10:] = IGNORE_INDEX
        data = AdaptationData(
            names=tuple(f"c{row}" for row in range(N_CLIPS)),
            inputs={0 if from_frontend else 1: [torch.from_numpy(clip) for clip in frames]},
            reconstruction_frames=frames,
            skipped={},
        )
        defaults = {"method": "bottleneck", "size": 4, "layers": (2, 3), "epochs": 2, "batch_size": 4}
        setup = prepare(
            encoder,
            data,
            labels,
            n_classes=2,
            config=AdapterConfig(**defaults | options),
            from_frontend=from_frontend,
            accelerator=make_accelerator(device, dtype),
        )
        adapter = train_adapter(setup, SPLIT, lambda step: None)
        result = evaluate_adapter(setup, SPLIT, adapter, FrozenProbes.fit(setup, [SPLIT]))
        logits = {name: getattr(result, name) for name in ("head_logits", "frozen_logits", "adapted_logits", "cka")}
        offset = measure_mean_offset(setup, SPLIT, adapter).cpu().numpy()
        losses = {name: getattr(result.history, name) for name in ("label_loss", "mask_loss")}
        return logits | losses | {"mean_offset": offset, "n_trainable": result.n_trainable}

    return run


@pytest.mark.parametrize("method", METHODS)
def test_adapters(method, train, kind):
    size = registry.load(peft_methods.PACKAGE, "PEFT method", method).SIZE and 4
    assert_alike(kind, lambda device: train(device, method=method, size=size))


@pytest.mark.parametrize("target", ["units", "features", "logmel"])
@pytest.mark.parametrize("from_frontend", [False, True])
def test_masked_reconstruction(target, from_frontend, train, kind):
    options = {"mask_target": target, "mask_weight": 0.5, "from_frontend": from_frontend, "class_weights": "balanced"}
    assert_alike(kind, lambda device: train(device, **options))


@pytest.mark.parametrize("kind", DEVICES, indirect=True)
@pytest.mark.parametrize("encoder_name", ["wavlm", "wav2vec2_group"])
def test_other_encoders(encoder_name, train, kind):
    options = {"encoder_name": encoder_name, "layers": (2,)}
    assert_alike(kind, lambda device: train(device, **options))


@pytest.mark.parametrize("method", ["bottleneck", "lora", "prompt"])
def test_bfloat16_by_autocast(method, train):
    expected = train(CPU, method=method, size=4)
    with emulate("cuda") as emulation:
        found = train(torch.device("cuda"), torch.bfloat16, method=method, size=4)
        assert emulation.dtypes[torch.bfloat16] > 100
    for name in ("label_loss", "cka"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0.05, err_msg=name)


# ---------------------------------------------------------------- alignment


@pytest.fixture(scope="module")
def stored(tmp_path_factory, make_store):
    """A frame store, and acoustic vectors of its 40 clips."""
    rng = np.random.default_rng(0)
    frames = {f"c{n:02d}": rng.normal(n % 5, 1, (2 + n % 4, 6)).astype(np.float32) for n in range(40)}
    return make_store(tmp_path_factory.mktemp("stored") / "f.h5", "frames", frames), rng.normal(0, 1, (40, 5))


@pytest.mark.parametrize(
    ("loss", "false_negatives"), [*((loss, "threshold") for loss in LOSSES), ("infonce", "pseudo-class")]
)
def test_alignment(loss, false_negatives, stored, kind, dropout, tmp_path):
    path, targets = stored
    targets = targets.astype(np.float16)
    split = split_clips(np.arange(40), 0)

    def align(device):
        torch.manual_seed(0)
        aligner = Aligner(channels=6, width=8, blocks=1, acoustic=5, dropout=dropout)
        accelerator = make_accelerator(device, torch.float32)
        with FeatureStore(path) as store:
            data = AlignmentData(
                stream=FrameStream(store, np.arange(40), 64),
                targets=targets,
                split=split,
                false_negatives=FalseNegativeFilter.fit(false_negatives, targets, train=split.train, seed=0),
            )
            history = trainer.train(
                aligner,
                losses.load(loss).build(),
                data,
                options=AlignOptions(loss=loss, epochs=2, batch=8),
                accelerator=accelerator,
                checkpoint=Checkpoint(tmp_path / f"{device.type}.safetensors", interval=0),
                progress=lambda *_: None,
                max_padded_frames=12,
            )
            vectors = encode_distributed(aligner, data.stream, split.held_out, accelerator=accelerator).cpu()
        return {"vectors": vectors, "loss": history.loss, "development_loss": history.development_loss}

    assert_alike(kind, align)


# ---------------------------------------------------------------- fusion


def fusion_data(device, n_unlabelled=0):
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.arange(24) % 3, rng.integers(0, 3, n_unlabelled)])
    values = [(rng.normal(0, 1, (len(labels), 2, 10)) + labels[:, None, None]).astype(np.float32) for _ in range(2)]
    present = torch.ones(len(labels), 2, dtype=torch.bool)
    present[::7, 1] = False
    features = ModalityFeatures([torch.from_numpy(value).to(device) for value in values], present.to(device))
    return FusionData(features, labelled_clips(labels[:24]), Folds(np.arange(24) // 3 % 3, 3, "three"))


def ensemble_config(head, dropout):
    return EnsembleConfig(
        head=head,
        classes=3,
        trial=Trial(width=8, dropout=dropout, learning_rate=0.02, epochs=3),
        seeds=2,
        training=FusionTraining(batch=8, label_smoothing=0.1, class_weights=True, modality_dropout=dropout),
    )


@pytest.mark.parametrize("head", HEADS)
def test_fusion(head, kind, dropout):
    def fuse(device):
        ensemble = train_ensemble(fusion_data(device), ensemble_config(head, dropout))
        return {"logits": ensemble.held_out_logits}

    assert_alike(kind, fuse)


@pytest.mark.parametrize("kind", DEVICES, indirect=True)
def test_self_training(kind, dropout):
    def fuse(device):
        data, config = fusion_data(device, n_unlabelled=40), ensemble_config("attention", dropout)
        unimodal = [train_ensemble(data.modality(index), config) for index in range(2)]
        result = self_train(data, config, unimodal=unimodal, self_training=SelfTraining(rounds=2))
        return {"logits": result.ensemble.held_out_logits}

    assert_alike(kind, fuse)
