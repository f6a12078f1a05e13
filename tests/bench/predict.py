"""`predict` in one pass over the clips against its stages one after the other, as `extract` runs them.

    python tests/bench/predict.py
    python tests/bench/predict.py --tiny

Encoders of real shapes with random weights: a HuBERT-base, a CLIP ViT-B/16 whose features are taken twice, pooled and
as frames, as for an aligner, and a BERT-base. One side is `mertool predict`: sound and faces of a clip are read in one
task, encoders work side by side, and the two visual parts share the pass of their encoder. The other is `mertool
extract` for each part in turn, with the face crops of the first visual part kept for the second, and then `mertool
predict` from stores that are complete. Loading models is in neither. Rows count clips per second from files to
predictions, both sides in turn, the median over rounds; `largest_difference` is that of the probabilities. Writes
build/bench/predict.json.
"""

import argparse
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from engine import clock
from inputs import make_clips, make_texts
from models import demo, make_model
from report import ROOT, Row, others, publish, say, workplace

RESULT = ROOT / "build" / "bench" / "predict.json"
# What is fused: name, modality, encoder, further settings of `extract`.
PARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "audio": ("audio", "hubert-base", {}),
    "video": ("video", "clip-vit-b16", {}),
    "frames": ("video", "clip-vit-b16", {"pool": "none"}),
    "text": ("text", "bert-base", {}),
}
BUNDLES = {"shared-decode": ("audio", "video", "text"), "shared-encoder": ("audio", "video", "frames", "text")}


def main() -> None:
    options = parse()
    share = others()
    with workplace() as place:
        models = {encoder: make_model(encoder, place, options.tiny) for _, encoder, _ in PARTS.values()}
        manifest = make_manifest(place, options.clips, options.tiny)
        rows = [measure(name, parts, place / name, models, manifest, options, share) for name, parts in BUNDLES.items()]
    publish(rows, options.output, f"predict: {options.clips} clips, from files to predictions")


def measure(
    name: str,
    parts: tuple[str, ...],
    place: Path,
    models: dict[str, Path],
    manifest: Any,
    options: argparse.Namespace,
    share: float,
) -> Row:
    """One row: a bundle over some of the parts."""
    place.mkdir()
    few = type(manifest)(manifest.clips[:3], manifest.source)
    stores = [extract_part(part, few, place / f"{part}.h5", models, options) for part in parts]
    bundle = make_bundle(place / "bundle", stores)
    seconds: dict[str, list[float]] = {"together": [], "in turn": []}
    found: dict[str, np.ndarray] = {}
    for number in range(options.rounds):
        for side in sorted(seconds, reverse=bool(number % 2)):
            output = place / "p.csv"
            with without_loading() as loading:
                began = time.perf_counter()
                if side == "in turn":
                    for part in parts:
                        extract_part(part, manifest, place / "p.csv.features" / f"{part}.h5", models, options)
                found[side] = run_predict(bundle, manifest, output, options)
                seconds[side].append(time.perf_counter() - began - loading())
            shutil.rmtree(place / "p.csv.features")
            say(f"{name}, round {number + 1}, {side}: {seconds[side][-1]:.1f} s")
    pairs = [old / new for old, new in zip(seconds["in turn"], seconds["together"], strict=True)]
    paces = {side: len(manifest) / float(np.median(times)) for side, times in seconds.items()}
    fields = {
        "spread": [round(min(pairs), 2), round(max(pairs), 2)],
        "largest_difference": float(np.abs(found["together"] - found["in turn"]).max()),
        "parts": list(parts),
        "device": str(options.device),
        "others": share,
    }
    return Row(f"predict/{name}", paces["together"], "clips/s", paces["in turn"], fields)


def without_loading() -> Any:
    """While open, what it gives tells the seconds spent in loading and hashing models so far."""
    from contextlib import contextmanager

    from mertool import encoders

    @contextmanager
    def measured() -> Any:
        with ExitStack() as stack:
            clocks = [
                stack.enter_context(clock(*what)) for what in ((encoders, "load"), (encoders.CheckpointRef, "digest"))
            ]
            yield lambda: sum(spent["seconds"] for spent in clocks)

    return measured()


def extract_part(part: str, manifest: Any, output: Path, models: dict[str, Path], options: argparse.Namespace) -> Path:
    """`mertool extract` of one part."""
    from mertool.extract import extract
    from mertool.options.extract import ExtractOptions

    modality, encoder, settings = PARTS[part]
    given = ExtractOptions(
        modality=modality, encoder=str(models[encoder]), layers="last", device=options.device, **settings
    )
    result = extract(manifest, output, given)
    if result.features != len(manifest):
        raise SystemExit(f"{part}: {len(manifest) - result.features} of {len(manifest)} clips failed")
    return output


def run_predict(bundle: Path, manifest: Any, output: Path, options: argparse.Namespace) -> np.ndarray:
    """`mertool predict`; the probabilities (N, C)."""
    from mertool.options.predict import PredictOptions
    from mertool.predict import predict
    from mertool.predictions import Predictions

    predict(bundle, manifest, output, PredictOptions(device=options.device))
    return Predictions.read(output).probabilities


def make_bundle(folder: Path, stores: list[Path]) -> Path:
    """A bundle of five untrained heads over the stores."""
    import torch

    from mertool import bundle
    from mertool.fusion import heads as fusion
    from mertool.learning.cached_features import load_features
    from mertool.manifest import EMOTIONS
    from mertool.runs import new_run
    from mertool.store import FeatureStore

    parts, features = [], []
    for path in stores:
        with FeatureStore(path) as store:
            parts.append(bundle.describe_features(store))
            features.append(torch.from_numpy(load_features([store], store.ids)[0][0]))
    torch.manual_seed(0)
    shapes = [(int(values.shape[1]), int(values.shape[2])) for values in features]
    heads = [fusion.build("attention", shapes, len(EMOTIONS), 128, 0.3) for _ in range(5)]
    for head in heads:
        head.fit_normaliser(features, torch.ones(len(features[0]), len(features), dtype=torch.bool))
    tensors = [dict([*head.named_parameters(), *head.named_buffers()]) for head in heads]
    state = {name: torch.stack([member[name].detach() for member in tensors]) for name in tensors[0]}
    members = bundle.Members("attention", 128, 0.3, state, tuple(range(5)), (0,) * 5)
    with new_run(folder, "fuse", key="bench", options={}, classes=list(EMOTIONS)) as draft:
        bundle.write(draft, parts, groups=[members], correction=bundle.Correction())
    return folder


def make_manifest(place: Path, count: int, tiny: bool) -> Any:
    """Talking-head clips with transcripts."""
    from mertool.manifest import Clip, Manifest

    paths = make_clips(place / "clips", count, tiny)
    texts = make_texts(list(demo().WORDS), count)
    clips = (Clip(path.stem, path, text=text) for path, text in zip(paths, texts, strict=True))
    return Manifest(tuple(clips), place / "clips")


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
