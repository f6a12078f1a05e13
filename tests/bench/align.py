"""`mertool align` from a frame store on disk against the same training with all frames in memory.

    python tests/bench/align.py
    python tests/bench/align.py --clips 115595 --frames 100 --channels 768 --width 256 --blocks 2 --no-baseline

Makes an acoustic store and a frame store of stand-in clips, of half to one and a half times `--frames` frames in
float16, and runs the whole stage on them: standardise, train `--epochs` epochs, score, write the aligned store. The
other side is the same stage with every frame and every acoustic layer read at once; it sees the same clips in the
same order, so `loss_difference`, the largest relative difference of the losses, says whether both did the same work.

`align/memory` is the largest resident memory of the process in MB: `start` of it is there before the stage begins,
`half` is that for half the clips. `align/speed` counts training clips per second. `--max-memory` (MB) makes the script
fail where more is used. Writes build/bench/align.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import ROOT, Row, others, publish, say, workplace

RESULT = ROOT / "build" / "bench" / "align.json"
LAYERS = 3  # of the acoustic store
SIDES = ("streamed", "in memory")


def main() -> None:
    options = parse()
    if options.side:
        print(json.dumps(run_side(options)))
        return
    other_load = others()
    with workplace() as folder:
        size = make_stores(folder, options.clips, options)
        say(f"{options.clips} clips, {size / 1e6:.0f} MB of frames")
        sides = {"streamed": call_side("streamed", folder, options)}
        if options.baseline:
            sides["in memory"] = call_side("in memory", folder, options)
        half = folder / "half"
        make_stores(half, options.clips // 2, options)
        half_size = call_side("streamed", half, options)
    rows = make_rows(sides, half_size, size=size, other_load=other_load, options=options)
    publish(rows, options.output, f"align: {options.clips} clips")
    if options.max_memory and sides["streamed"]["peak"] > options.max_memory:
        raise SystemExit(f"{sides['streamed']['peak']:.0f} MB of memory, more than {options.max_memory:g}")


def make_rows(
    sides: dict[str, Any], half_size: dict[str, Any], *, size: int, other_load: float, options: argparse.Namespace
) -> list[Row]:
    """Return the rows of memory and of speed."""
    ours, theirs = sides["streamed"], sides.get("in memory")
    fields: dict[str, Any] = {
        name: getattr(options, name) for name in ("clips", "frames", "channels", "width", "blocks")
    }
    fields |= {"megabytes": size / 1e6, "start": ours["start"], "half": half_size["peak"], "others": other_load}
    fields |= {"seconds": ours["seconds"], "device": ours["device"]}
    if theirs:
        losses = np.array(ours["losses"]), np.array(theirs["losses"])
        fields["loss_difference"] = float(np.max(np.abs(losses[0] / losses[1] - 1)))
    return [
        Row("align/memory", ours["peak"], "MB", theirs and theirs["peak"], fields),
        Row("align/speed", ours["pace"], "clips/s", theirs and theirs["pace"], fields),
    ]


def call_side(side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in a process of its own, so that its peak memory can be measured."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    for name in ("width", "blocks", "epochs", "batch", "device"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    say(f"{side}: {result['peak']:.0f} MB ({result['start']:.0f} at the start), {result['pace']:.0f} clips/s")
    return result


def run_side(options: argparse.Namespace) -> dict[str, Any]:
    """Run the stage on the stores of `--folder`; return its memory (MB), clips per second and losses."""
    import mertool.align as stage
    from mertool.options.align import AlignOptions

    if options.side == "in memory":
        stage.FrameStream, stage.load_acoustic_targets = in_memory_stream(), in_memory_targets  # type: ignore[misc, assignment]
    times: list[float] = []

    def record_time(step: int, total: int) -> None:
        times.append(time.monotonic())

    settings = AlignOptions(
        width=options.width, blocks=options.blocks, epochs=options.epochs, batch=options.batch, device=options.device
    )
    folder, began, start = options.folder, time.monotonic(), peak()
    run, _ = stage.align(
        folder / "audio.h5",
        folder / "frames.h5",
        folder / f"run of {options.side}",
        aligned=folder / f"aligned of {options.side}.h5",
        manifest=None,
        options=settings,
        progress=record_time,
    )
    steps = len(times) - 1  # the last call reports the end
    clips = run.metrics["train_clips"] * options.epochs * (steps - 1) / steps
    losses = [*run.metrics["loss"], *run.metrics["development_loss"]]
    pace, seconds = clips / (times[-2] - times[0]), time.monotonic() - began
    where = stage.resolve_device(options.device).type
    return {"peak": peak(), "start": start, "pace": pace, "seconds": seconds, "losses": losses, "device": where}


def in_memory_stream() -> Any:
    """Return a `FrameStream` that keeps every frame of the store in memory, as stored."""
    from mertool.alignment.data import FrameStream
    from mertool.encoders.aligner import uniform_frame_indices

    frames_of: dict[Path, list[np.ndarray]] = {}

    class InMemoryStream(FrameStream):
        def read(self, rows: np.ndarray) -> list[np.ndarray]:
            if self.store.path not in frames_of:
                frames_of[self.store.path] = self.store.all_frames()
            clips = (frames_of[self.store.path][row] for row in self.store_rows[rows])
            return [frames[uniform_frame_indices(len(frames), self.max_frames or len(frames))] for frames in clips]

    return InMemoryStream


def in_memory_targets(audio_store: Any, clips: list[str], train: np.ndarray) -> np.ndarray:
    """`load_acoustic_targets` by one read of all layers."""
    values = audio_store.read(clips)
    return ((values - values[train].mean(0)) / values[train].std(0)).mean(1).astype(np.float16)


def peak() -> float:
    """Return the largest resident memory of this process so far, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def make_stores(folder: Path, clips: int, options: argparse.Namespace) -> int:
    """Make stores of frames and audio that share a hidden cause; return the bytes of the frames."""
    from mertool.features import Recipe
    from mertool.store import ClipFeatures, StoreWriter

    folder.mkdir(exist_ok=True)
    random, size = np.random.default_rng(0), 0
    to_audio = random.normal(0, 1, (16, LAYERS, options.acoustic)).astype(np.float32)
    to_video = random.normal(0, 1, (16, options.channels)).astype(np.float32)
    noise = random.normal(0, 1, (4 * options.frames, options.channels)).astype(np.float32)
    ids = [f"clip{number:06d}" for number in range(clips)]
    audio_recipe = Recipe(modality="audio", encoder="made", weights="-", layers=tuple(range(LAYERS)), pool="mean")
    video_recipe = Recipe(modality="video", encoder="made", weights="-", layers=(1,), pool="none")
    provenance = {"encoder": {"name": "made", "checkpoint": "made", "revision": None}}
    with (
        StoreWriter(folder / "audio.h5", audio_recipe, provenance) as audio,
        StoreWriter(folder / "frames.h5", video_recipe, provenance) as video,
    ):
        for clip in ids:
            cause = random.normal(0, 1, 16).astype(np.float32)
            audio.add(ClipFeatures(clip, clip, np.einsum("k,kld->ld", cause, to_audio).astype(np.float16)))
            length = int(random.integers(options.frames // 2, options.frames * 3 // 2 + 1))
            begin = int(random.integers(0, len(noise) - length + 1))
            frames = (cause @ to_video + 4 * noise[begin : begin + length]).astype(np.float16)
            video.add(ClipFeatures(clip, clip, frames))
            size += frames.nbytes
        audio.finish(ids)
        video.finish(ids)
    return size


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--frames", type=int, default=64, help="of a clip, on average")
    parser.add_argument("--channels", type=int, default=512, help="of a frame")
    parser.add_argument("--acoustic", type=int, default=256, help="channels of the audio features")
    parser.add_argument("--width", type=int, default=64, help="of the aligner")
    parser.add_argument("--blocks", type=int, default=1, help="of the aligner")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-baseline", dest="baseline", action="store_false", help="only the streamed side")
    parser.add_argument("--max-memory", type=float, help="MB; more is a failure")
    parser.add_argument("--tiny", action="store_true", help="a smoke test: 200 clips")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.clips, options.frames, options.channels, options.acoustic, options.batch = 200, 8, 16, 8, 32
    return options


if __name__ == "__main__":
    main()
