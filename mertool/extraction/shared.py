"""One pass over the clips for several stores: each clip is read once, and every encoder takes what it needs.

Decoder processes read sound and faces of a clip in one task. Each consumer (an encoder with its stores, a speech
recogniser) works in a thread of its own, so the device has the sound of some clips to encode while faces of others
are looked for; only one of them computes at a time, because they share the device.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mertool.errors import ClipError
from mertool.extraction import pipeline
from mertool.extraction.decoding import (
    FACE_MODULES,
    DecodeResult,
    DecoderLimits,
    DecoderPool,
    decode_audio,
    decode_faces,
    decode_several,
)
from mertool.extraction.plan import WorkItem, make_plan
from mertool.features import Recipe
from mertool.manifest import Clip, Manifest
from mertool.noise import NoiseCorruption
from mertool.store import StoreWriter

QUEUE_SIZE = 4  # clips, decoded, that wait for one consumer
PATIENCE = 0.2  # seconds between looks at whether a consumer is still there


@dataclass(frozen=True)
class Reading:
    """What is read of a clip; consumers with equal readings share what comes of them."""

    modality: str
    settings: tuple[tuple[str, Any], ...] = ()
    noise: NoiseCorruption | None = None

    @classmethod
    def of(cls, recipe: Recipe, noise: NoiseCorruption | None = None) -> "Reading":
        """What the encoder of a recipe for sound or faces takes."""
        if recipe.modality == "audio":
            return cls("audio", (), noise)
        return cls("video", (("fps", recipe.media["fps"]), ("max_frames", recipe.media["most_frames"])), noise)

    @property
    def read(self) -> Callable[..., Any]:
        """The function of `decode` that reads it."""
        return decode_audio if self.modality == "audio" else decode_faces

    def settings_of(self, clip: Clip) -> dict[str, Any]:
        """All settings of `read` for one clip."""
        noise = self.noise and (
            self.noise.audio_settings(clip) if self.modality == "audio" else self.noise.video_settings(clip)
        )
        return {**dict(self.settings), **(noise or {})}


@dataclass(frozen=True)
class Target:
    """A store, the recipe of its features and where the encoder comes from."""

    output: Path
    recipe: Recipe
    origin: dict[str, Any]
    overwrite: bool = False


@dataclass(frozen=True)
class Group:
    """Stores that one pass of an encoder fills: the `finish` of what `load` makes gives the values of each."""

    targets: tuple[Target, ...]
    reading: Reading
    load: Callable[[], pipeline.EncodeSpec]


@dataclass(frozen=True)
class Listener:
    """Something else that takes what is read of `items`, as a speech recogniser does.

    `open` loads it and returns what is called, in a thread of its own, with the outcomes and a progress
    (done, total, failed); the model's own calls take turns with the encoders through the lock that `open` gets.
    """

    items: list[WorkItem]
    reading: Reading
    open: Callable[["threading.Lock"], Callable[[Iterable[DecodeResult], Callable[[int, int, int], None]], None]]


class Stopped(Exception):
    """Another consumer failed, or the run was interrupted."""


@dataclass
class _Consumer:
    """One thread: `consume` takes the outcomes of `items`."""

    items: list[WorkItem]
    reading: Reading
    consume: Callable[[Iterator[DecodeResult]], Any]
    waiting: "queue.Queue[DecodeResult | None]" = field(default_factory=lambda: queue.Queue(QUEUE_SIZE))
    error: BaseException | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.wanted = {item.clip.clip for item in self.items}
        self.thread = threading.Thread(target=self._work, daemon=True)

    def put(self, outcome: DecodeResult | None) -> None:
        """Hand an outcome over (None: there are no more); raises what the consumer raised."""
        while True:
            if self.error:
                raise self.error
            try:
                return self.waiting.put(outcome, timeout=PATIENCE)
            except queue.Full:
                pass

    def outcomes(self) -> Iterator[DecodeResult]:
        """What was put, as it comes."""
        while True:
            if self.stopped.is_set():
                raise Stopped
            try:
                outcome = self.waiting.get(timeout=PATIENCE)
            except queue.Empty:
                continue
            if outcome is None:
                return
            yield outcome

    def _work(self) -> None:
        try:
            self.consume(self.outcomes())
        except BaseException as error:  # whatever it is belongs to the thread that puts
            self.error = error


def fill_together(
    manifest: Manifest,
    groups: list[Group],
    listeners: list[Listener],
    limits: DecoderLimits,
    device: torch.device,
    progress: pipeline.Progress,
) -> None:
    """Bring the stores of all groups up to date with the manifest in one pass; nothing is loaded without work.

    Every store resumes by itself, as with `extract_to_store`.
    """
    turn, steps = threading.Lock(), _Steps(progress)
    with ExitStack() as stack:
        # Entered in this order, so that on an error consumers end first, and then the writers keep what is there.
        opened = [[_open(stack, target) for target in group.targets] for group in groups]
        todo = [_todo(manifest, group, writers) for group, writers in zip(groups, opened, strict=True)]
        if any(todo) or any(listener.items for listener in listeners):
            readings = [group.reading.modality for group, items in zip(groups, todo, strict=True) if items]
            modules = FACE_MODULES if "video" in readings else ("mertool.media",)
            decoders = stack.enter_context(DecoderPool(limits, modules, low_priority=device.type == "cpu"))
            decoders.start()  # while the encoders load
            consumers = [
                _encoding(group, items, writers, turn, steps.of(number, len(items)))
                for number, (group, items, writers) in enumerate(zip(groups, todo, opened, strict=True))
                if items
            ]
            consumers += [
                _listening(listener, turn, steps.of(len(groups) + number, len(listener.items)))
                for number, listener in enumerate(listeners)
                if listener.items
            ]
            _read(consumers, decoders)
        for writer in (writer for writers in opened for writer in writers):
            writer.finish(clip.clip for clip in manifest.clips)


def _open(stack: ExitStack, target: Target) -> StoreWriter:
    return stack.enter_context(StoreWriter(target.output, target.recipe, target.origin, target.overwrite))


def _todo(manifest: Manifest, group: Group, writers: list[StoreWriter]) -> list[WorkItem]:
    """Clips that any store of the group lacks, in the manifest's order."""
    plans = [make_plan(manifest, group.reading.modality, writer.done, writer.failed).todo for writer in writers]
    items = {item.clip.clip: item for plan in plans for item in plan}
    return [items[clip.clip] for clip in manifest.clips if clip.clip in items]


def _encoding(
    group: Group, items: list[WorkItem], writers: list[StoreWriter], turn: threading.Lock, step: pipeline.Progress
) -> _Consumer:
    work = group.load()
    work.encoder.encode_prepared = in_turn(turn, work.encoder.encode_prepared)  # type: ignore[method-assign]

    def consume(outcomes: Iterator[DecodeResult]) -> None:
        pipeline.run(outcomes, len(items), work, writers, step)

    return _Consumer(items, group.reading, consume)


def _listening(listener: Listener, turn: threading.Lock, step: pipeline.Progress) -> _Consumer:
    listen = listener.open(turn)

    def consume(outcomes: Iterator[DecodeResult]) -> None:
        listen(outcomes, lambda done, total, failed: step(done, total, failed, 0.0))

    return _Consumer(listener.items, listener.reading, consume)


def in_turn(turn: threading.Lock, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called by one thread at a time: two that compute at once would only wait for each other."""

    def call(*given: Any) -> Any:
        with turn:
            return function(*given)

    return call


def _read(consumers: list[_Consumer], decoders: DecoderPool) -> None:
    """Read every clip once and give the consumers what they want of it."""
    for consumer in consumers:
        consumer.thread.start()
    try:
        lost = _read_once(consumers, decoders)
        # What hung or died is read again, each reading by itself, so that one costs none of the others.
        for reading in {consumer.reading: None for consumer in consumers}:
            takers = [consumer for consumer in consumers if consumer.reading == reading]
            items = [item for item in lost if any(item.clip.clip in taker.wanted for taker in takers)]
            for item, outcome in decoders.read(items, reading.read, reading.settings_of):
                _give(takers, item, outcome)
        for consumer in consumers:
            consumer.put(None)
    except BaseException:
        for consumer in consumers:
            consumer.stopped.set()
        raise
    finally:
        for consumer in consumers:
            consumer.thread.join()
    for consumer in consumers:
        if consumer.error:
            raise consumer.error


def _read_once(consumers: list[_Consumer], decoders: DecoderPool) -> list[WorkItem]:
    """One task for each clip, in the consumers' order; the items whose decoder hung or died come back."""
    items = {item.clip.clip: item for consumer in consumers for item in consumer.items}
    readings = list({consumer.reading: None for consumer in consumers})
    takers = {reading: [consumer for consumer in consumers if consumer.reading == reading] for reading in readings}

    def wanted(clip: str) -> list[Reading]:
        return [reading for reading in readings if any(clip in taker.wanted for taker in takers[reading])]

    def settings_of(clip: Clip) -> dict[str, Any]:
        return {"readings": [(reading.read, reading.settings_of(clip)) for reading in wanted(clip.clip)]}

    lost = []
    for item, outcome in decoders.read(items.values(), decode_several, settings_of):
        if isinstance(outcome, ClipError):
            lost.append(item)
            continue
        for reading, found in zip(wanted(item.clip.clip), outcome.content, strict=True):
            _give(takers[reading], item, found)
    return lost


def _give(takers: list[_Consumer], item: WorkItem, outcome: Any) -> None:
    for taker in takers:
        if item.clip.clip in taker.wanted:
            taker.put((item, outcome))


class _Steps:
    """Adds up the progress of several consumers: clips as if each did its share of them."""

    def __init__(self, progress: pipeline.Progress):
        self.progress, self.lock = progress, threading.Lock()
        self.states: dict[int, tuple[int, int, int, float]] = {}

    def of(self, number: int, total: int) -> pipeline.Progress:
        """The progress of one consumer."""
        self.states[number] = (0, total, 0, 0.0)
        return partial(self._step, number)

    def _step(self, number: int, done: int, total: int, failed: int, media: float) -> None:
        with self.lock:
            self.states[number] = (done, total, failed, media)
            dones, totals, failures, seconds = zip(*self.states.values(), strict=True)
            clips = max(totals)
            self.progress(clips * sum(dones) // sum(totals), clips, sum(failures), max(seconds))
