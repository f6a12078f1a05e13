"""Speed of `mertool extract` compared with a plain script that does the same.

    python tests/bench/extract.py
    python tests/bench/extract.py --only audio/hubert-base text/bert-base --repeat 3
    python tests/bench/extract.py --tiny --clips 3

Makes encoders of the real shapes with random weights and its own clips in a temporary folder, and prints a table;
everything is in build/bench/extract.json. The pace of a machine drifts within minutes, so both sides take turns: in
each round they do the same few clips, one after the other, in the next round in the opposite order; a figure is the
media of all rounds by the seconds of all rounds. Both clocks run from the first clip to the last write: importing and
loading a model are counted on neither side (the engine's decoder processes start meanwhile). Each side has a process
of its own, so that no setting of one reaches the other. A row of the engine's own number format is followed by one of
float32 where that is another. Exits 1 if the features of both sides differ.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
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
    "video/clip-vit-l14": "frames/s",
    "text/bert-base": "texts/s",
}
SHARE, SHARED = "encoder-share/hubert-base", "audio/hubert-base"
STORES = ("store/read-all", "store/read-pooled")
NAMES = (*CASES, SHARE, *STORES)
DEFAULT_NAMES = tuple(name for name in NAMES if name != "video/clip-vit-l14")  # that takes long on a CPU
LEAST_COSINE = 0.99
Items = list[tuple[str, Any]]
WARM_UP = 2  # clips
ROUND = 16  # clips: on a CPU seconds to a minute, in which little drifts


@dataclass(frozen=True)
class Setting:
    """Settings of all measurements. The device is resolved: `cpu`, `cuda`, ...

    `round_size` is the number of clips in a turn; `apart` is the process of the baseline, which lasts for all rows
    since it takes seconds to start.
    """

    folder: Path
    media: list[Path]
    texts: list[str]
    device: str
    repeat: int
    round_size: int
    tiny: bool
    apart: ProcessPoolExecutor

    def rounds(self, modality: str) -> list[Items]:
        """Name and content of every clip, in as many parts as there are rounds."""
        contents: list[Any] = self.texts if modality == "text" else self.media
        items = [(f"clip{number:05d}", content) for number, content in enumerate(contents)]
        count = -(-len(self.media) // self.round_size)
        return [items[first::count] for first in range(count)]


@dataclass
class Runs:
    """All rounds of one case: the baseline's seconds and amount, the engine's by number format, the encoder alone.

    `agreement` is the least cosine between both sides in each round, and the mean one between different clips;
    `others` the share of the processor that other programs used before it.
    """

    naive: list[tuple[float, float]] = field(default_factory=list)
    engine: dict[str, list["Measured"]] = field(default_factory=dict)
    agreement: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    alone: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)


def main() -> None:
    options = parse()
    from inputs import make_clips, make_texts
    from models import demo

    from mertool.devices import resolve_device

    selected = set(options.only)
    with workplace() as folder:
        say(f"making {options.clips} clips")
        media = make_clips(folder / "clips", options.clips, options.tiny) * options.copies
        texts = make_texts(demo().WORDS, 24 if options.tiny else 256)
        device = resolve_device(options.device).type
        with own_process() as apart:
            rows = measure(
                Setting(folder, media, texts, device, options.repeat, options.round, options.tiny, apart), selected
            )
    publish(rows, options.output, "mertool extract against a plain script")
    differing = [row.name for row in rows if row.fields.get("min_cosine", 1.0) < LEAST_COSINE]
    if differing:
        raise SystemExit(f"the features of both sides differ (cosine below {LEAST_COSINE}): {', '.join(differing)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of `mertool extract` compared with a plain script.")
    parser.add_argument("--clips", type=int, default=32, help="clips with audio and video (default: 32)")
    parser.add_argument("--copies", type=int, default=1, help="times that each clip is extracted in a run (default: 1)")
    parser.add_argument("--round", type=int, default=ROUND, help=f"clips in a turn of a side (default: {ROUND})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...; the same for both sides")
    parser.add_argument(
        "--only", nargs="+", default=DEFAULT_NAMES, choices=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--repeat", type=int, default=2, help="times that each side does all clips (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="tiny encoders and stores: a smoke test")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    if options.clips < WARM_UP or options.repeat < 1:
        parser.error(f"--clips must be at least {WARM_UP} and --repeat at least 1")
    return options


def measure(setting: Setting, selected: set[str]) -> list[Row]:
    """Measure the selected rows, in the order of NAMES."""
    from stores import measure_stores

    rows: list[Row] = []
    for name in CASES:
        with_share = name == SHARED and SHARE in selected
        if name in selected or with_share:
            runs = run_case(name, setting, with_share)
            rows += case_rows(name, runs) if name in selected else []
            rows += [share_row(runs)] if with_share else []
    rows += measure_stores(setting.folder, selected, **({"clips": 60, "repeat": 2} if setting.tiny else {}))
    return rows


def own_process() -> ProcessPoolExecutor:
    """A process that was not forked, and so has torch's defaults."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def run_case(name: str, setting: Setting, with_share: bool) -> Runs:
    """Warm up both sides on a few clips, then let them do the clips in turns."""
    from models import make_model

    modality, model_name = name.split("/")
    say(f"{name}: making the encoder")
    model = make_model(model_name, setting.folder, setting.tiny)
    rounds = setting.rounds(modality)
    # A process for each case: the engine's decoder processes are forked from one that has imported what they need.
    with own_process() as engine:
        side = Sides(modality, model, setting, engine)
        side.naive(rounds[0][:WARM_UP])
        native = side.engine("auto", rounds[0][:WARM_UP]).dtype
        dtypes = list(dict.fromkeys([native, "float32"]))
        runs = Runs(engine={dtype: [] for dtype in dtypes}, agreement={dtype: [] for dtype in dtypes})
        for number, items in enumerate(rounds * setting.repeat):
            side.turn(items, runs, with_share, backwards=number % 2 == 1)
            say(f"{name}: round {number + 1} of {len(rounds) * setting.repeat}, {summary(runs)}")
    return runs


@dataclass(frozen=True)
class Sides:
    """Both sides of a case; `process` is the engine's."""

    modality: str
    model: Path
    setting: Setting
    process: ProcessPoolExecutor

    def turn(self, items: Items, runs: Runs, with_share: bool, backwards: bool) -> None:
        """One round: the baseline, the engine in each number format, the encoder alone; or the other way round."""
        native = next(iter(runs.engine))
        steps: list[Callable[[], None]] = [lambda: runs.naive.append(self.naive(items))]
        steps += [
            lambda dtype=dtype, measured=measured: measured.append(self.engine(dtype, items))
            for dtype, measured in runs.engine.items()
        ]
        steps += [lambda: runs.alone.append(self.alone(native, items))] if with_share else []
        runs.others.append(others())
        for step in reversed(steps) if backwards else steps:
            step()
        files = [self.output / f"{name}.npy" for name, _ in items]
        for dtype, measured in runs.engine.items():
            runs.agreement[dtype].append(agreement(measured[-1].features, files))

    @property
    def output(self) -> Path:
        """The folder of the baseline's features."""
        return self.setting.folder / f"naive-{self.model.name}"

    def naive(self, items: Items) -> tuple[float, float]:
        """Seconds and amount of the baseline."""
        import naive

        device = self.setting.device
        return self.setting.apart.submit(naive.measure, self.modality, self.model, items, self.output, device).result()

    def engine(self, dtype: str, items: Items) -> "Measured":
        """One run of the engine into a new store, which is removed again."""
        import engine

        from mertool.manifest import Clip, Manifest

        def clip(name: str, content: Any) -> Clip:
            return (
                Clip(clip=name, path=Path(), text=content) if self.modality == "text" else Clip(clip=name, path=content)
            )

        manifest = Manifest(tuple(clip(*item) for item in items), self.setting.folder / "clips.csv")
        folder = self.setting.folder / "store"
        arguments = (self.modality, self.model, manifest, folder / "values.h5", self.setting.device, dtype)
        measured = self.process.submit(engine.measure, *arguments).result()
        shutil.rmtree(folder)
        return measured

    def alone(self, dtype: str, items: Items) -> float:
        """Seconds of the encoder alone on the same audio, decoded before."""
        import engine
        import naive

        waves = [naive.read_sound(path) for _, path in items]
        device = self.setting.device
        return self.process.submit(engine.encode_alone, self.model, waves, dtype, device).result()


def case_rows(name: str, runs: Runs) -> list[Row]:
    """A row for the engine's own number format, and one for float32 where that is another."""
    seconds, amount = (sum(column) for column in zip(*runs.naive, strict=True))
    rows = []
    for number, (dtype, measured) in enumerate(runs.engine.items()):
        ours, theirs = sum(run.seconds for run in measured), sum(run.amount for run in measured)
        pace = [run.amount / run.seconds for run in measured]
        cosines, between = zip(*runs.agreement[dtype], strict=True)
        fields = {
            "dtype": dtype,
            **where(measured),
            "amount": {"engine": theirs, "naive": amount},
            "rounds": {"engine": [run.seconds for run in measured], "naive": [run[0] for run in runs.naive]},
            "ratios": [a * run[0] / run[1] for a, run in zip(pace, runs.naive, strict=True)],
            "outer": [run.outer for run in measured],
            "others": runs.others,
            "min_cosine": min(cosines),
            "cosine_of_different_clips": sum(between) / len(between),
        }
        fields["median_ratio"] = median(fields["ratios"])
        label = f"{name}-{dtype}" if number else name
        rows.append(Row(label, theirs / ours, CASES[name], amount / seconds, fields))
    return rows


def share_row(runs: Runs) -> Row:
    """The encoder's own time as a share of the engine's."""
    measured = next(iter(runs.engine.values()))
    fields = {**where(measured), "alone": runs.alone}
    fields |= {"rounds": [run.seconds for run in measured], "others": runs.others}
    return Row(SHARE, sum(runs.alone) / sum(run.seconds for run in measured), "share", 1.0, fields)


def where(measured: "Sequence[Measured]") -> dict[str, Any]:
    """Return the seconds of each kind of work that the engine reports, and the share of encoding."""
    seconds = {kind: sum(run.parts[kind] for run in measured) for kind in measured[0].parts}
    busy = seconds["encode"] / sum(run.seconds for run in measured) if "encode" in seconds else None
    return {"busy": busy, "seconds": seconds}


def agreement(features: Any, files: Sequence[Path]) -> tuple[float, float]:
    """The least cosine between both sides' features of a clip; beside it the mean between different clips."""
    import numpy as np

    theirs = np.stack([np.load(file).reshape(-1, features.shape[1])[-1] for file in files])
    return float(_cosine(features, theirs).min()), float(_cosine(features, np.roll(theirs, 1, axis=0)).mean())


def _cosine(left: Any, right: Any) -> Any:
    import numpy as np

    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / lengths


def summary(runs: Runs) -> str:
    """Return the seconds of the last round, for the line of progress."""
    sides = [("plain script", runs.naive[-1][0])]
    sides += [(f"mertool {dtype}", measured[-1].seconds) for dtype, measured in runs.engine.items()]
    return ", ".join(f"{side} {seconds:.1f} s" for side, seconds in sides)


if __name__ == "__main__":
    main()
