"""mertool: multimodal emotion recognition, from a folder of clips to predictions.

The way of the data (each arrow is one command, one module of the same name and one test file):

    folder of clips --manifest--> clips.csv
    clips.csv --extract audio|video|text--> features/*.h5
    features/audio.h5 + labels --probe-layers--> runs/probe
    clips.csv + runs/probe --finetune--> runs/acoustic
    features/acoustic.h5 + video-frames.h5 --align--> runs/visual
    features of 1..n modalities + labels --fuse--> runs/fusion
    runs/fusion + folder of videos --predict--> predictions.csv

A module imports only from floors below its own: `cli` (7), the stages (6), `adaptation`, `alignment`, `bundle` (5),
`engine` (4), `encoders`, `peft_methods`, `training` (3), `store`, `media`, `faces`, `runs`, `predictions`, `metrics`,
`plots`, `devices`, `interop`, `fusion` (2), `manifest`, `features`, `registry` (1), `errors`, `files` (0).
"""

__version__ = "0.1.0"
