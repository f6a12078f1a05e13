"""Cost of `predict` against `extract` for each of its features, followed by scoring.

    python tests/bench/predict.py
    python tests/bench/predict.py --tiny

Encoders of real shapes with random weights: a HuBERT-base, a CLIP ViT-B/16 whose features are taken twice, pooled and
as frames, as for an aligner, and a BERT-base. One side is `mertool predict` from files to predictions: one job per
encoder, and stores of one encoder share its pass. The other side runs `mertool extract` for each store, where the face
crops of the first visual store are kept for the second, and then `mertool predict` from complete stores.

The row `one-store-per-encoder` has nothing to share, so its ratio says what the path of predict costs (1 is nothing;
the engine with threads for several encoders, which predict had before, reached 0.93 here). The row `shared-encoder`
says what a shared pass gains. Loading models is in neither side. Rows count clips per second, the sides alternate, and
the median over rounds is reported; `largest_difference` is that of the probabilities. Writes build/bench/predict.json.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from engine import clock
from inputs import make_clips, make_texts
from models import demo, make_model
from report import ROOT, Row, others, publish, say, workplace

RESULT = ROOT / "build" / "bench" / "predict.json"
# The stores that are fused: name, modality, encoder, further options of `extract`.
STORES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "audio": ("audio", "hubert-base", {}),
    "video": ("video", "clip-vit-b16", {}),
    "frames": ("video", "clip-vit-b16", {"pool": "none"}),
    "text": ("text", "bert-base", {}),
}
BUNDLES = {
    "one-store-per-encoder": ("audio", "video", "text"),
    "shared-encoder": ("audio", "video", "frames", "text"),
}
PREDICT, SEPARATE = "predict", "extract each"


def main() -> None:
    options = parse()
    share = others()
    with workplace() as folder:
        models = {encoder: make_model(encoder, folder, options.tiny) for _, encoder, _ in STORES.values()}
        manifest = make_manifest(folder, options.clips, options.tiny)
        rows = [
            Comparison(folder / name, stores, models, manifest, options.device).run(name, options.rounds, share)
            for name, stores in BUNDLES.items()
        ]
    publish(rows, options.output, f"predict: {options.clips} clips, from files to predictions")


@dataclass(frozen=True)
class Comparison:
    """Both sides for a bundle over the stores named in `stores`, with its files in `folder`."""

    folder: Path
    stores: Sequence[str]
    models: dict[str, Path]
    manifest: Any
    device: str

    def run(self, name: str, rounds: int, share: float) -> Row:
        """Measure both sides in turn; `share` is that of the machine which other processes used."""
        self.folder.mkdir()
        few = type(self.manifest)(self.manifest.clips[:3], self.manifest.source)
        bundle = make_bundle(
            self.folder / "bundle", [self.extract(store, few, self.folder / f"{store}.h5") for store in self.stores]
        )
        seconds: dict[str, list[float]] = {PREDICT: [], SEPARATE: []}
        probabilities: dict[str, np.ndarray] = {}
        for number in range(rounds):
            for side in sorted(seconds, reverse=bool(number % 2)):
                with clock_without_loading() as elapsed:
                    probabilities[side] = self.predict(bundle, extract_first=side == SEPARATE)
                    seconds[side].append(elapsed())
                shutil.rmtree(self.folder / "p.csv.features")
                say(f"{name}, round {number + 1}, {side}: {seconds[side][-1]:.1f} s")
        ratios = [separate / own for separate, own in zip(seconds[SEPARATE], seconds[PREDICT], strict=True)]
        paces = {side: len(self.manifest) / float(np.median(times)) for side, times in seconds.items()}
        fields = {
            "spread": [round(min(ratios), 2), round(max(ratios), 2)],
            "largest_difference": float(np.abs(probabilities[PREDICT] - probabilities[SEPARATE]).max()),
            "stores": list(self.stores),
            "device": self.device,
            "others": share,
        }
        return Row(f"predict/{name}", paces[PREDICT], "clips/s", paces[SEPARATE], fields)

    def predict(self, bundle: Path, extract_first: bool) -> np.ndarray:
        """`mertool predict`, after `mertool extract` of each store on request; the probabilities (N, C)."""
        from mertool.options.predict import PredictOptions
        from mertool.predict import predict
        from mertool.predictions import Predictions

        output = self.folder / "p.csv"
        if extract_first:
            for store in self.stores:
                self.extract(store, self.manifest, self.folder / "p.csv.features" / f"{store}.h5")
        predict(bundle, self.manifest, output, options=PredictOptions(device=self.device))
        return Predictions.read(output).probabilities

    def extract(self, store: str, manifest: Any, output: Path) -> Path:
        """`mertool extract` of one store; crops are kept if another one needs them."""
        from mertool.extract import extract
        from mertool.options.extract import ExtractOptions

        modality, encoder, settings = STORES[store]
        several = sum(STORES[name][0] == "video" for name in self.stores) > 1
        if modality == "video":
            settings = {**settings, "keep_faces": several}
        options = ExtractOptions(
            modality=modality, encoder=str(self.models[encoder]), layers="last", device=self.device, **settings
        )
        result = extract(manifest, output, options)
        if result.features != len(manifest):
            raise SystemExit(f"{store}: {len(manifest) - result.features} of {len(manifest)} clips failed")
        return output


@contextmanager
def clock_without_loading() -> Iterator[Callable[[], float]]:
    """Give a function that returns the seconds since entering, without those of loading and hashing models."""
    from mertool import encoders

    with clock(encoders, "load_encoder") as loading, clock(encoders.CheckpointRef, "digest") as hashing:
        began = time.perf_counter()
        yield lambda: time.perf_counter() - began - loading["seconds"] - hashing["seconds"]


def make_bundle(folder: Path, stores: list[Path]) -> Path:
    """A bundle of five untrained heads over the stores."""
    import torch

    from mertool import bundle
    from mertool.fusion.heads import HeadSpec
    from mertool.learning.cached_features import load_features
    from mertool.manifest import EMOTIONS
    from mertool.runs import new_run
    from mertool.store import FeatureStore

    specs, features = [], []
    for path in stores:
        with FeatureStore(path) as store:
            specs.append(bundle.describe_features(store))
            features.append(torch.from_numpy(load_features([store], store.ids)[0][0]))
    torch.manual_seed(0)
    shapes = [(int(values.shape[1]), int(values.shape[2])) for values in features]
    heads = [HeadSpec("attention", shapes, len(EMOTIONS)).build(width=128, dropout=0.3) for _ in range(5)]
    for head in heads:
        head.fit_standardizer(features, torch.ones(len(features[0]), len(features), dtype=torch.bool))
    tensors = [dict([*head.named_parameters(), *head.named_buffers()]) for head in heads]
    state = {name: torch.stack([member[name].detach() for member in tensors]) for name in tensors[0]}
    members = bundle.EnsembleWeights(
        head="attention", width=128, dropout=0.3, state=state, fold=tuple(range(5)), seed=(0,) * 5
    )
    facts = {"classes": list(EMOTIONS), "class_counts": dict.fromkeys(EMOTIONS, 1)}
    with new_run(folder, "fuse", key="bench", options={}, **facts) as draft:
        bundle.write(draft, specs, groups=[members], correction=bundle.Correction())
    return folder


def make_manifest(folder: Path, count: int, tiny: bool) -> Any:
    """Talking-head clips with transcripts."""
    from mertool.manifest import Clip, Manifest

    paths = make_clips(folder / "clips", count, tiny)
    texts = make_texts(list(demo().WORDS), count)
    clips = (Clip(clip=path.stem, path=path, text=text) for path, text in zip(paths, texts, strict=True))
    return Manifest(tuple(clips), folder / "clips")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3, help="of each side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: tiny encoders, short clips")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
