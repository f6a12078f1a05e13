"""The encoder and the layers to adapt, from the probe-layers run that the options name."""

import warnings
from dataclasses import replace
from pathlib import Path

from mertool import encoders
from mertool.errors import MertoolError, MertoolWarning
from mertool.manifest import Manifest
from mertool.options.finetune import FinetuneOptions
from mertool.options.shared import EMOTION
from mertool.runs import Run


def read_probe(options: FinetuneOptions, manifest: Manifest) -> FinetuneOptions:
    """Return the options with an encoder and layers: those given, else those of the probe.

    Raises MertoolError where the run does not probe a frozen speech encoder, or probes another one than is given; and
    if its layers are needed, where it recommends none or has probed no labelled clip of the manifest.
    """
    if options.probe is None:
        return replace(options, encoder=options.encoder or encoders.DEFAULT_ENCODERS["audio"])
    run = Run.read(options.probe, "probe-layers", "window", "recipe", "origin", "folds")
    recipe, probed = run.info["recipe"], run.info["origin"]["encoder"]
    if (target := run.info.get("target", EMOTION)) != EMOTION:
        raise MertoolError(f"{options.probe} probed {target}, but finetune trains classes: give --layers instead")
    if recipe["modality"] != "audio":
        raise MertoolError(f"{options.probe} probed {recipe['modality']} features: finetune adapts speech encoders")
    if recipe["adapter"]:
        raise MertoolError(
            f"{options.probe} probed adapted features, but finetune adapts the frozen encoder: give a probe of "
            "features extracted without --adapter"
        )
    if options.encoder and not _names_checkpoint(options.encoder, probed):
        raise MertoolError(
            f"{options.probe} probed encoder '{probed['name']}', not '{options.encoder}': leave out --encoder"
        )
    layers = options.layers
    if layers is None:
        _check_probed_clips(run, manifest)
        if run.info["window"] is None:
            raise MertoolError(f"{options.probe} found no layer above chance and recommends none: give --layers")
        first, last = run.info["window"]
        layers = f"{first}-{last}"
    encoder = probed["checkpoint"] if Path(probed["checkpoint"]).is_dir() else probed["name"]
    return replace(options, encoder=encoder, layers=layers)


def _check_probed_clips(run: Run, manifest: Manifest) -> None:
    """Raise MertoolError if no labelled clip of the manifest was probed; warn if most were not.

    Clips may have been added or left out since the probe, but a window that other clips chose is none that these do.
    """
    probed = run.info["folds"]
    labelled = [clip.clip for clip in manifest.clips if clip.label]
    n_probed = sum(clip in probed for clip in labelled)
    of_manifest = f"of the {len(labelled)} labelled clips of {manifest.source}"
    if n_probed == 0:
        raise MertoolError(
            f"{run.folder} probed none {of_manifest}, but such as '{min(probed, default='')}': give the probe of these "
            "clips, or --layers"
        )
    if 2 * n_probed < len(labelled):
        message = f"{run.folder} probed only {n_probed} {of_manifest}: all of them may recommend other layers"
        warnings.warn(message, MertoolWarning, stacklevel=2)


def _names_checkpoint(encoder: str, probed: dict[str, str]) -> bool:
    checkpoint = probed["checkpoint"]
    return encoder in (probed["name"], checkpoint) or Path(encoder).resolve() == Path(checkpoint)
