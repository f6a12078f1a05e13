"""`Bundle`: a run of `fuse` that scores raw clips by itself. It holds only safetensors and JSON; nothing else is read.

    run.json                 parts, members, correction, classes, class_counts (of the training clips), files, seal
    members-K.safetensors    heads of one form: all folds and seeds, stacked, each with its standardizer
    encoders/DIGEST/         a local encoder or speech recogniser: configuration, vocabulary, safetensors
    partN/adapters/final/    the adapter trained on all folds, if the features are adapted
    partN/aligner/           the aligner, if the features are aligned

An entry of `parts` describes the features of one store (see FeatureSpec): `{name, modality, recipe, origin, shape: [L,
D], spans}`. The recipe names the encoder, the adapter, the aligner and the recogniser by digest, and holds the media
settings. `origin` says where they were found and changes no prediction: copies inside the bundle come first, hub
encoders are fetched by their revision, and a local encoder that was too large to be copied is read from its folder; put
into `encoders/DIGEST`, it travels along. `files` maps each file's path within the bundle to its SHA-256; `seal` is the
digest of everything in run.json that changes a prediction.
"""

from mertool.bundle.feature_spec import FeatureSpec, check_provenance, describe_features
from mertool.bundle.layout import COPY_BYTES
from mertool.bundle.reader import Bundle
from mertool.bundle.writer import write
from mertool.fusion.calibration import Correction
from mertool.fusion.ensemble_weights import EnsembleWeights

__all__ = [
    "COPY_BYTES",
    "Bundle",
    "Correction",
    "EnsembleWeights",
    "FeatureSpec",
    "check_provenance",
    "describe_features",
    "write",
]
