"""Facts of the media of clips: in words, in JSON, and in the listing of a store."""

import json

import numpy as np
import pytest
import soundfile

from mertool.media_stats import MediaStats


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        (
            MediaStats(seconds=4, sample_rate=48_000, channels=2, audio_tracks=2, audio_track=2, note="a hole"),
            "4.0 s, 48000 Hz, 2 channels, audio track 2 of 2; a hole",
        ),
        (MediaStats(seconds=2.5, frames_seen=10, face_share=0.5), "2.5 s, 10 frames, a face in 50% of them"),
        (MediaStats(), ""),
    ],
)
def test_facts_in_words(stats, words):
    assert stats.describe() == words


def test_unknown_facts_are_null_in_json():
    value = json.loads(json.dumps(MediaStats(sample_rate=8_000).to_json(), allow_nan=False))
    assert (value["seconds"], value["sample_rate"], value["note"]) == (None, 8_000, "")


def test_losses_are_counted_and_listed(invoke, call, tiny_encoders, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (22_050, 2))
    (tmp_path / "media").mkdir()
    soundfile.write(tmp_path / "media" / "whole.wav", noise, 22_050)
    soundfile.write(tmp_path / "media" / "cut.flac", noise, 22_050)
    flac = tmp_path / "media" / "cut.flac"
    damaged = bytearray(flac.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 3000] = bytes(3000)
    flac.write_bytes(damaged)
    store = tmp_path / "audio.h5"
    result = call("extract", "audio", tmp_path / "media", "-o", store, "--encoder", tiny_encoders["hubert_group"])
    assert "read with losses: 1 clip (`mertool store ls" in result.stdout
    listing = call("store", "ls", store, "--media").stdout
    assert "whole: 1.0 s, 22050 Hz, 2 channels, audio track 1 of 1\n" in listing
    assert "cut: 1.0 s, 22050 Hz, 2 channels, audio track 1 of 1; " in listing
    (content,) = json.loads(call("store", "ls", store, "--media", "--json").stdout)["stores"]
    assert content["media"]["whole"]["sample_rate"] == 22_050
    assert content["media"]["whole"]["face_share"] is None
    assert "became silence" in content["media"]["cut"]["note"]
