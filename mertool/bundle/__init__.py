"""`Bundle`: a run of `fuse` that scores raw clips by itself. Safetensors and JSON alone; nothing else is read.

    run.json                 parts, members, correction, classes, files, seal
    members-K.safetensors    heads of one form: all folds and seeds, stacked, each with its normaliser
    encoders/DIGEST/         a local encoder or speech recogniser: configuration, vocabulary, safetensors
    partN/adapters/final/    the adapter trained on all folds, where there is one
    partN/aligner/           the aligner, where there is one

A part is what one store was: `{name, modality, recipe, origin, shape: [L, D], spans}`. Its recipe names the encoder,
the adapter, the aligner and the recogniser by digest, and holds the media settings; `origin` says where they were
found and is provenance: what is inside the bundle is taken from there, hub encoders are fetched by their revision,
and a local encoder too large to be copied is looked for where it was; put into `encoders/DIGEST`, it travels along.
`files` maps each file's path within the bundle to its SHA-256; `seal` is the digest of everything in run.json that
changes a prediction.
"""

from mertool.bundle.layout import COPY_BYTES
from mertool.bundle.parts import BundlePart, check_parts, make_part
from mertool.bundle.reader import Bundle
from mertool.bundle.writer import write
from mertool.fusion.calibration import Correction
from mertool.fusion.cross_validation import Members

__all__ = ["COPY_BYTES", "Bundle", "BundlePart", "Correction", "Members", "check_parts", "make_part", "write"]
