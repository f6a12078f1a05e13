"""Encoders: frozen transformers whose hidden states are features. A checkpoint is a row, a family is a file.

table           the checkpoints with a short name
families/       one file per family, which loads checkpoints of some model types as an `Encoder`
base            `Encoder`, the interface that extraction and training use
checkpoints     finding a checkpoint by table name, hub id or folder
checkpoint_files  which files of its folder are loaded
loading         loading it
hidden_states   reading the outputs of transformer blocks by hooks
cpu             layers that compute faster on a CPU
recognition     a Whisper and the settings of speech recognition, which is no encoder
asr             speech recognition with Whisper
voice_activity  voice activity detection with silero-vad
aligner         the temporal encoder that `align` trains on the frames of a visual encoder

The names below need no torch until an encoder is loaded.
"""

from mertool.encoders.checkpoints import (
    CheckpointRef,
    check_encoder,
    check_recogniser,
    count_layers,
    resolve_encoder,
    stores_half_precision,
)
from mertool.encoders.loading import load_encoder, load_recogniser
from mertool.encoders.recognition import RecognitionSettings, SpeechRecognition, resolve_recognition
from mertool.encoders.table import DEFAULT_ENCODERS, ENCODERS, EncoderSpec

__all__ = [
    "DEFAULT_ENCODERS",
    "ENCODERS",
    "CheckpointRef",
    "EncoderSpec",
    "RecognitionSettings",
    "SpeechRecognition",
    "check_encoder",
    "check_recogniser",
    "count_layers",
    "load_encoder",
    "load_recogniser",
    "resolve_encoder",
    "resolve_recognition",
    "stores_half_precision",
]
