"""How fast `mertool extract` is, against a plain script that does the same.

    python tests/bench/extract.py
    python tests/bench/extract.py --only audio/hubert-base text/bert-base --repeat 3
    python tests/bench/extract.py --tiny --clips 3

Makes encoders of the real shapes with random weights and its own clips in a temporary folder, runs both sides in
turn on the same machine, takes the best run of each and prints a table; everything is in build/bench/extract.json.
Loading a model is counted on neither side; starting the engine's decoder processes is. The baseline (naive.py)
runs in a process of its own, so that no setting of the engine reaches it. A row of the engine's own number format
is followed by one of float32 where that is another. Exits 1 if the features of both sides differ.
"""

import argparse
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import ROOT, Row, others, publish, say, workplace

if TYPE_CHECKING:
    from engine import Measured

# Heavy modules are imported inside functions: the engine's decoder processes import this file.
RESULT = ROOT / "build" / "bench" / "extract.json"
CASES = {
    "audio/hubert-base": "s of audio/s",
    "audio/hubert-large": "s of audio/s",
    "video/clip-vit-b16": "frames/s",
    "text/bert-base": "texts/s",
}
SHARE, SHARED = "encoder-share/hubert-base", "audio/hubert-base"
STORES = ("store/read-all", "store/read-pooled")
GPU = "gpu/hubert-large-mfu"
NAMES = (*CASES, SHARE, *STORES, GPU)
LEAST_COSINE = 0.99
WARM_UP = 2  # clips


@dataclass(frozen=True)
class Setting:
    """What is measured: where, on what, how often. The device is resolved: `cpu`, `cuda`, ...

    `apart` is the process of the baseline.
    """

    folder: Path
    media: list[Path]
    texts: list[str]
    device: str
    repeat: int
    tiny: bool
    apart: ProcessPoolExecutor

    def items(self, modality: str) -> list[tuple[str, Any]]:
        """Name and content of every clip."""
        contents: list[Any] = self.texts if modality == "text" else self.media
        return [(f"clip{number:05d}", content) for number, content in enumerate(contents)]


@dataclass
class Runs:
    """All runs of one case: the baseline's seconds and amount, the engine's by number format, the encoder alone.

    `others` is the share of the processor that other programs used before each.
    """

    naive: list[tuple[float, float]] = field(default_factory=list)
    engine: dict[str, list["Measured"]] = field(default_factory=dict)
    alone: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)


def main() -> None:
    options = parse()
    from inputs import make_clips, make_texts
    from models import demo

    from mertool.devices import resolve_device

    wanted = set(options.only)
    with workplace() as folder:
        say(f"making {options.clips} clips")
        media = make_clips(folder / "clips", options.clips, options.tiny)
        texts = make_texts(demo().WORDS, 24 if options.tiny else 256)
        device = resolve_device(options.device).type
        # Spawned, it has torch's defaults; and once for all rows, since it takes seconds to start.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            rows = measure(Setting(folder, media, texts, device, options.repeat, options.tiny, apart), wanted)
    publish(rows, options.output, "mertool extract against a plain script")
    differing = [row.name for row in rows if row.fields.get("min_cosine", 1.0) < LEAST_COSINE]
    if differing:
        raise SystemExit(f"the features of both sides differ (cosine below {LEAST_COSINE}): {', '.join(differing)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How fast `mertool extract` is, against a plain script.")
    parser.add_argument("--clips", type=int, default=32, help="clips of sound and picture (default: 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...; the same for both sides")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--repeat", type=int, default=2, help="runs of each side; the best counts (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="tiny encoders and stores: a smoke test")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    if options.clips < WARM_UP or options.repeat < 1:
        parser.error(f"--clips must be at least {WARM_UP} and --repeat at least 1")
    return options


def measure(setting: Setting, wanted: set[str]) -> list[Row]:
    """All rows that are wanted, in the order of NAMES."""
    import torch
    from stores import measure_stores

    rows: list[Row] = []
    for name in CASES:
        with_share = name == SHARED and SHARE in wanted
        if name in wanted or with_share:
            runs = run_case(name, setting, with_share)
            rows += case_rows(name, runs, setting) if name in wanted else []
            rows += [share_row(runs)] if with_share else []
    rows += measure_stores(setting.folder, wanted, *((60, 2) if setting.tiny else ()))
    if GPU in wanted and torch.cuda.is_available() and setting.device == "cuda":
        rows.append(gpu_row(setting))
    return rows


def run_case(name: str, setting: Setting, with_share: bool) -> Runs:
    """Warm up both sides on a few clips, then run them in turn."""
    from models import make_model

    modality, model_name = name.split("/")
    say(f"{name}: making the encoder")
    model = make_model(model_name, setting.folder, setting.tiny)
    runs = Runs()
    naive_side(modality, model, setting, WARM_UP)
    native = engine_side(modality, model, setting, "auto", WARM_UP).dtype
    for number in range(setting.repeat):
        runs.others.append(others())
        runs.naive.append(naive_side(modality, model, setting))
        for dtype in dict.fromkeys([native, "float32"]):
            runs.engine.setdefault(dtype, []).append(engine_side(modality, model, setting, dtype))
        if with_share:
            runs.alone.append(encoder_side(model, setting, runs.engine[native][-1]))
        say(f"{name}: run {number + 1} of {setting.repeat}, {summary(runs, number)}")
    return runs


def naive_side(modality: str, model: Path, setting: Setting, first: int | None = None) -> tuple[float, float]:
    """Seconds and amount of the baseline on all clips, or on the first few."""
    import naive

    items = setting.items(modality)[:first]
    output = naive_folder(setting, model)
    return setting.apart.submit(naive.measure, modality, model, items, output, setting.device).result()


def engine_side(modality: str, model: Path, setting: Setting, dtype: str, first: int | None = None) -> "Measured":
    """One run of the engine into a new store, which is removed again."""
    import engine

    from mertool.manifest import Clip, Manifest

    def clip(name: str, content: Any) -> Clip:
        return Clip(name, Path(), text=content) if modality == "text" else Clip(name, content)

    clips = tuple(clip(*item) for item in setting.items(modality)[:first])
    place = setting.folder / "store"
    measured = engine.measure(
        modality, model, Manifest(clips, setting.folder / "clips.csv"), place / "values.h5", setting.device, dtype
    )
    shutil.rmtree(place)
    return measured


def encoder_side(model: Path, setting: Setting, run: "Measured") -> float:
    """Seconds of the encoder alone on the same sound, decoded before."""
    import engine
    import naive

    waves = [naive.read_sound(path) for path in setting.media]
    return engine.encode_alone(model, waves, run, setting.device, batched=setting.device == "cuda")


def case_rows(name: str, runs: Runs, setting: Setting) -> list[Row]:
    """A row for the engine's own number format, and one for float32 where that is another."""
    seconds, amount = min(runs.naive)
    rows = []
    for number, (dtype, measured) in enumerate(runs.engine.items()):
        best = min(measured, key=lambda run: run.seconds)
        fields = {
            "dtype": dtype,
            "busy": best.busy,
            "seconds": best.parts,
            "amount": {"engine": best.amount, "naive": amount},
            "runs": {"engine": [run.seconds for run in measured], "naive": [run[0] for run in runs.naive]},
            "outer": [run.outer for run in measured],
            "others": runs.others,
            **agreement(best.features, naive_folder(setting, setting.folder / name.split("/")[1])),
        }
        label = f"{name}-{dtype}" if number else name
        rows.append(Row(label, best.amount / best.seconds, CASES[name], amount / seconds, fields))
    return rows


def share_row(runs: Runs) -> Row:
    """The encoder's own time as a share of the engine's."""
    measured = next(iter(runs.engine.values()))
    best = min(measured, key=lambda run: run.seconds)
    fields = {"busy": best.busy, "seconds": best.parts, "alone": runs.alone}
    fields |= {"runs": [run.seconds for run in measured], "others": runs.others}
    return Row(SHARE, min(runs.alone) / best.seconds, "share", 1.0, fields)


def gpu_row(setting: Setting) -> Row:
    import naive
    from gpu import measure_mfu
    from models import make_model

    say(f"{GPU}: encoder alone")
    model = make_model("hubert-large", setting.folder, setting.tiny)
    return measure_mfu(model, [naive.read_sound(path) for path in setting.media], setting.device, setting.repeat)


def naive_folder(setting: Setting, model: Path) -> Path:
    """Where the baseline writes the features of an encoder."""
    return setting.folder / f"naive-{model.name}"


def agreement(features: Any, folder: Path) -> dict[str, float]:
    """The least cosine between both sides' features of a clip; beside it the mean between different clips."""
    import numpy as np

    theirs = np.stack([np.load(file).reshape(-1, features.shape[1])[-1] for file in sorted(folder.glob("*.npy"))])
    return {
        "min_cosine": float(_cosine(features, theirs).min()),
        "cosine_of_different_clips": float(_cosine(features, np.roll(theirs, 1, axis=0)).mean()),
    }


def _cosine(left: Any, right: Any) -> Any:
    import numpy as np

    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / lengths


def summary(runs: Runs, number: int) -> str:
    """What a run took, for the line of progress."""
    parts: Sequence[tuple[str, float]] = [("plain script", runs.naive[number][0])]
    parts = [*parts, *((f"mertool {dtype}", measured[number].seconds) for dtype, measured in runs.engine.items())]
    return ", ".join(f"{what} {seconds:.1f} s" for what, seconds in parts)


if __name__ == "__main__":
    main()
