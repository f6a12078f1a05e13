#!/usr/bin/env bash
# The main job on the demo clips, command by command: what `make demo` runs. Usage: run.sh [OUTPUT_FOLDER]
# Speech and text encoders are small pretrained ones where they can be had; pretrained.py prints which it takes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-build/demo}
features=$out/features
runs=$out/runs
mkdir -p "$features" "$runs"

step() {
    echo
    # Quoted, so that it can be copied where a path has spaces.
    printf '$'
    printf ' %q' "$@"
    echo
    local began=$SECONDS
    "$@"
    echo "($((SECONDS - began)) s)"
}

step python "$here/pretrained.py" "$out/encoders"
audio=$(cat "$out/encoders/audio.txt")
video=$(cat "$out/encoders/video.txt")
text=$(cat "$out/encoders/text.txt")

step mertool manifest "$here/clips" -o "$out/clips.csv" --labels "$here/manifest.csv" \
    --transcripts "$here/manifest.csv" --speakers '^(spk\d+)_'
step mertool extract audio "$out/clips.csv" -o "$features/audio.h5" --encoder "$audio"
step mertool extract faces "$out/clips.csv" -o "$features/faces.h5"
step mertool extract video "$out/clips.csv" -o "$features/video.h5" --frames "$features/video-frames.h5" \
    --encoder "$video" --faces "$features/faces.h5"
step mertool extract text "$out/clips.csv" -o "$features/text.h5" --encoder "$text"
step mertool probe-layers "$features/audio.h5" --manifest "$out/clips.csv" -o "$runs/probe"
step mertool finetune "$out/clips.csv" --probe "$runs/probe" -o "$runs/acoustic" --epochs 10
step mertool extract audio "$out/clips.csv" -o "$features/acoustic.h5" --encoder "$audio" --adapter "$runs/acoustic"
step mertool align --audio "$features/acoustic.h5" --video "$features/video-frames.h5" -o "$runs/visual" \
    --manifest "$out/clips.csv"

# Frozen features; adapted ones; and the whole system. All on the folds of the adapters, so that they can be compared.
step mertool fuse "$features/audio.h5" "$features/video.h5" "$features/text.h5" \
    --manifest "$out/clips.csv" -o "$runs/frozen" --folds "$runs/acoustic"
step mertool fuse "$features/acoustic.h5" "$features/video.h5" "$features/text.h5" \
    --manifest "$out/clips.csv" -o "$runs/adapted"
step mertool fuse "$features/acoustic.h5" "$features/aligned.h5" "$features/text.h5" \
    --manifest "$out/clips.csv" -o "$runs/fusion"
# What adaptation changed, and what alignment did: paired tests on the held-out clips.
step mertool evaluate "$runs/frozen/held_out.csv" "$runs/adapted/held_out.csv" --labels "$out/clips.csv" \
    -o "$out/adaptation.json"
step mertool evaluate "$runs/adapted/held_out.csv" "$runs/fusion/held_out.csv" --labels "$out/clips.csv" \
    -o "$out/alignment.json"

# Clips never seen, from two speakers more than in training.
step mertool manifest "$here/test" -o "$out/test.csv" --labels "$here/manifest.csv" \
    --transcripts "$here/manifest.csv"
step mertool predict "$runs/fusion" "$out/test.csv" -o "$out/predictions.csv"
step mertool evaluate "$out/predictions.csv" --labels "$out/test.csv" -o "$out/metrics.json" \
    --bundle "$runs/fusion" --missing audio --missing video --missing text
step mertool report "$runs/frozen" "$runs/adapted" "$runs/fusion" "$out/metrics.json" -o "$out/report.html"

echo
echo "report:      $out/report.html, with tables for a paper, a model card and a checklist beside it"
echo "predictions: $out/predictions.csv"
echo "metrics:     $out/metrics.json; what adaptation and alignment changed: $out/adaptation.json $out/alignment.json"
echo "plots:       $out/metrics-confusion.png $runs/probe/layers.png $runs/acoustic/losses.png"
echo "             $runs/visual/loss.png $runs/fusion/scores.png $runs/fusion/confusion.png"
echo "features:    $features"
echo "runs:        $runs (the bundle is $runs/fusion)"
echo "encoders:    audio $audio, video $video, text $text"
echo "The clips are synthetic: these figures show that every stage works, not how well emotions are recognised."
