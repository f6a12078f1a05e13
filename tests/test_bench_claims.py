"""`make bench-claims`: which cells there are, that finished ones are kept, and how their figures are computed."""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parent / "bench"
ACTORS, CLIPS_OF_A_CLASS = 6, 2


@pytest.fixture
def claims(monkeypatch, tmp_path):
    """The module of the benchmark, with its files in a temporary folder."""
    monkeypatch.syspath_prepend(str(BENCH))
    import claims as module

    monkeypatch.setattr(module, "PLACE", tmp_path / "claims")
    module.PLACE.mkdir()
    return module


@pytest.fixture
def options(tmp_path, claims):
    """Options with the labels of a small corpus: six actors, two clips of each class by each."""
    corpus = tmp_path / "ravdess"
    corpus.mkdir()
    with open(corpus / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "speaker"])
        for actor in range(ACTORS):
            for label in claims.CLASSES:
                writer.writerows([f"{actor}-{label}-{n}.flac", label, f"a{actor}"] for n in range(CLIPS_OF_A_CLASS))
    return argparse.Namespace(
        ravdess=corpus, mosi=tmp_path / "mosi", weights=tmp_path / "weights", seeds=3, only=[""], budget=1000
    )


def guesses_with(claims, options, wrong):
    """Guesses of all clips: `wrong` (actor) is the share of an actor's clips, from the first on, that are wrong."""
    found = {}
    with open(claims.write_manifest(options.ravdess), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            truth, number = claims.CLASSES.index(row["label"]), int(row["clip"].rpartition("-")[2])
            is_wrong = number < wrong(row["speaker"]) * CLIPS_OF_A_CLASS
            found[row["clip"]] = (truth + 1) % len(claims.CLASSES) if is_wrong else truth
    return found


def write_adapter_cell(claims, method, seed, **guesses):
    content = {"command": "mertool finetune", "guesses": guesses, "trainable": 10, "parameters": 100, "size": 1}
    file = claims.Cell(f"adapt/whisper-base/{method}/window/seed{seed}", dict).file
    file.write_text(json.dumps({**content, "layers": "3-4"}))


def test_what_is_missing_is_said_in_one_line_each(claims, options, capsys):
    (options.ravdess / "emobox_folds.csv").write_text("fold,split,file\n")
    assert claims.plan(options) == []
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "left out: whisper-base",
        "left out: whisper-tiny-en",
        "left out: MOSI",
    ]
    assert all("does not exist; give --" in line for line in lines)


def test_the_main_comparison_comes_first_with_one_seed(claims, options):
    (options.ravdess / "emobox_folds.csv").write_text("fold,split,file\n")
    for encoder in claims.ENCODERS:
        (options.weights / encoder).mkdir(parents=True)
        (options.weights / encoder / "config.json").write_text("{}")
    names = [cell.name for cell in claims.plan(options)]
    assert len(names) == len(set(names))
    assert names[0] == "probe/whisper-base"
    main = [f"adapt/whisper-base/{m}/window/seed{s}" for s in range(3) for m in ("lora", "bottleneck")]
    assert names[1:7] == main
    for encoder in claims.ENCODERS:
        assert next(name for name in names if encoder in name) == f"probe/{encoder}"
    # An adapter is extracted, and rates are compared, after what they read is there.
    assert names.index("store/whisper-base/lora") > names.index("adapt/whisper-base/lora/window/seed0")


def test_finished_cells_are_kept(claims, options, monkeypatch, tmp_path):
    measured = []

    def measure(name):
        measured.append(name)
        return {"command": "", "systems": {}}

    options.table, options.only, options.output = False, ["mosi"], tmp_path / "claims.json"
    cells = [claims.Cell(name, lambda name=name: measure(name)) for name in ("mosi", "rate/x/y")]
    monkeypatch.setattr(claims, "plan", lambda options: cells)
    monkeypatch.setattr(claims, "parse", lambda: options)
    claims.main()
    claims.main()
    assert measured == ["mosi"]  # once; the other one was not asked for
    options.only = [""]
    claims.main()
    assert measured == ["mosi", "rate/x/y"]
    assert json.loads(options.output.read_text())["rows"] == []


def test_scores_are_means_over_seeds_and_tests_are_over_actors(claims, options):
    half_wrong = guesses_with(claims, options, lambda _: 0.5)
    all_right = guesses_with(claims, options, lambda _: 0)
    one_actor_wrong = guesses_with(claims, options, lambda actor: 1.0 if actor == "a0" else 0)
    for seed, adapted in enumerate((all_right, one_actor_wrong)):
        systems = {"frozen": half_wrong, "adapted": adapted, "adapted_probe": half_wrong, "averaged": half_wrong}
        write_adapter_cell(claims, "lora", seed, **systems)
    rows = {row.name: row for row in claims.adapter_rows("whisper-base", options)}
    adapted = rows["whisper-base/lora, layers 3-4, adapted"]
    assert adapted.baseline == pytest.approx(0.5)
    assert adapted.fields["seeds"] == pytest.approx([1.0, 5 / 6])
    assert adapted.value == pytest.approx((1 + 5 / 6) / 2)
    gain = adapted.fields["gain"]
    assert gain["value"] == pytest.approx(adapted.value - 0.5)
    # Five actors gain 0.5, one gains nothing: of the 32 signs that count, two are as extreme.
    assert gain["p"] == pytest.approx(2 / 2**5)
    assert rows["whisper-base/lora, layers 3-4, averaged"].fields["gain"]["p"] == 1
    assert gain["p_holm"] == pytest.approx(3 * gain["p"])


def test_methods_are_compared_on_the_seeds_that_both_have(claims, options):
    right, half = (guesses_with(claims, options, lambda _, share=share: share) for share in (0, 0.5))
    for seed in range(2):
        write_adapter_cell(claims, "lora", seed, **dict.fromkeys(claims.SYSTEMS, right))
    write_adapter_cell(claims, "bottleneck", 0, **dict.fromkeys(claims.SYSTEMS, half))
    (row, *_) = claims.method_rows("whisper-base", "window", options)
    assert (row.fields["seeds"], row.fields["gain"]["value"]) == (1, pytest.approx(0.5))
    assert row.fields["gain"]["p"] == pytest.approx(2 / 2**ACTORS)


def test_unweighted_accuracy_is_the_mean_of_the_recalls(claims):
    truth = np.array([0, 0, 0, 0, 1, 2, 2])
    guesses = np.array([0, 0, 0, 1, 1, 2, 0])
    assert claims.unweighted_accuracy(truth, guesses) == pytest.approx((0.75 + 1 + 0.5) / 3)
