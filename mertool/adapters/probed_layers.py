"""The encoder and the layers to adapt, from the probe-layers run that the options name."""

from dataclasses import replace
from pathlib import Path

from mertool import encoders
from mertool.errors import MertoolError
from mertool.options.finetune import FinetuneOptions
from mertool.runs import Run


def read_probe(options: FinetuneOptions) -> FinetuneOptions:
    """Return the options with an encoder and layers: those given, else those of the probe.

    Raises MertoolError where the run does not probe a frozen speech encoder, or probes another one than is given.
    """
    if options.probe is None:
        return replace(options, encoder=options.encoder or encoders.DEFAULT_ENCODERS["audio"])
    run = Run.read(options.probe, "probe-layers", "window", "recipe", "origin")
    recipe, probed = run.info["recipe"], run.info["origin"]["encoder"]
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
    first, last = run.info["window"]
    encoder = probed["checkpoint"] if Path(probed["checkpoint"]).is_dir() else probed["name"]
    return replace(options, encoder=encoder, layers=options.layers or f"{first}-{last}")


def _names_checkpoint(encoder: str, probed: dict[str, str]) -> bool:
    checkpoint = probed["checkpoint"]
    return encoder in (probed["name"], checkpoint) or Path(encoder).resolve() == Path(checkpoint)
