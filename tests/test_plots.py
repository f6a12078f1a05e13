"""The pictures: both formats, whole, with their words in them."""

import numpy as np
import pytest
from PIL import Image

from mertool import plots
from mertool.metrics import calibration_error

SCORES = {"0": (0.3, 0.2, 0.4), "1": (0.5, 0.4, 0.6), "2": (0.4, 0.3, 0.5)}


@pytest.fixture(autouse=True)
def words_as_text(monkeypatch):
    monkeypatch.setitem(plots.plt.rcParams, "svg.fonttype", "none")


DRAWN = {
    "layers": (
        lambda path: plots.plot_layer_scores(path, [0, 1, 2], SCORES, window=(1, 2), chance=0.2),
        ["recommended window", "95 % intervals", "chance", "layer (0 = embedding)"],
    ),
    "layers and mlp": (
        lambda path: plots.plot_layer_scores(
            path, [0, 1, 2], SCORES, window=(1, 2), chance=SCORES, mlp=SCORES, interval="95 % intervals over speakers"
        ),
        ["small MLP", "over speakers", "chance"],
    ),
    "one layer": (
        lambda path: plots.plot_layer_scores(path, [1], SCORES, window=(1, 1), chance=SCORES, mlp=SCORES),
        ["linear probe", "small MLP"],
    ),
    "adapters": (
        lambda path: plots.plot_training_losses(path, {"fold0": [2.0, 1.0]}, "lora on layer 3"),
        ["fold0", "cross-entropy of the training clips", "lora on layer 3"],
    ),
    "recall": (
        lambda path: plots.plot_recall_by_layer(
            path, [0, 1], {"0": {"calm": 0.125}, "1": {"calm": 0.83}}, window=(1, 1)
        ),
        ["calm", "13", "83", "recall", "recommended window"],
    ),
    "scores": (
        lambda path: plots.plot_score_bars(
            path, {"audio": SCORES["0"], "fusion": SCORES["1"]}, title="Fusion", chance=0.2
        ),
        ["audio", "fusion", "Fusion", "always the largest class"],
    ),
    "confusion": (
        lambda path: plots.plot_confusion_matrix(path, np.array([[37, 2], [0, 0]]), ("calm", "tense")),
        ["calm", "tense", "37", "predicted"],
    ),
    "reliability": (
        lambda path: plots.plot_reliability(
            path, calibration_error(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), np.array([0, 0, 0]))["bins"], 0.123
        ),
        ["calibration error 12.3 %", "confidence", "share of right guesses", "accuracy"],
    ),
    "loss": (
        lambda path: plots.plot_epoch_curves(
            path, {"training": [3.0, 2.0], "validation": [3.1, 2.9]}, ylabel="loss", title="Losses"
        ),
        ["training", "validation", "epoch", "Losses"],
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_picture_is_a_png_and_an_svg(name, tmp_path):
    draw, words = DRAWN[name]
    draw(tmp_path / f"{name}.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.png", f"{name}.svg"]
    with Image.open(tmp_path / f"{name}.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10  # something is drawn
    drawing = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    for word in words:
        assert word in drawing


@pytest.mark.parametrize("name", ["layers", "recall"])
def test_a_picture_drawn_twice_is_the_same_file(name, tmp_path):
    pictures = []
    for number in range(2):
        DRAWN[name][0](tmp_path / f"{number}.png")
        pictures.append([(tmp_path / f"{number}{suffix}").read_bytes() for suffix in (".png", ".svg")])
    assert pictures[0] == pictures[1]
    assert b"<dc:date>" not in pictures[0][1]


def test_no_window_is_drawn_where_none_is_recommended(tmp_path):
    plots.plot_layer_scores(tmp_path / "layers", [0, 1, 2], SCORES, window=None, chance=0.2)
    plots.plot_recall_by_layer(tmp_path / "recall", [0, 1], {"0": {"calm": 0.1}, "1": {"calm": 0.8}}, window=None)
    for name in ("layers", "recall"):
        assert "window" not in (tmp_path / f"{name}.svg").read_text(encoding="utf-8")


NO_INTERVALS = {name: (value, None, None) for name, (value, _, _) in SCORES.items()}
RECALLS = {f"recall@{k}": {"value": 0.3, "low": None, "high": None} for k in (1, 5, 10)}


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.plot_layer_scores(
            path, [0, 1, 2], NO_INTERVALS, window=(1, 2), chance=NO_INTERVALS, mlp=NO_INTERVALS, interval="no intervals"
        ),
        lambda path: plots.plot_score_bars(path, NO_INTERVALS, title="Fusion"),
        lambda path: plots.plot_retrieval_recall(
            path,
            {"video_to_audio": RECALLS, "audio_to_video": RECALLS, "chance": dict.fromkeys(RECALLS, 0.1)},
            "8 clips",
        ),
        lambda path: plots.plot_adaptation(
            path,
            [3],
            {"3": {name: {"waf": RECALLS["recall@1"]} for name in ("frozen", "adapted")} | {"cka": 0.9}},
            title="",
        ),
    ],
    ids=["layers", "scores", "recall", "adapters"],
)
def test_scores_without_intervals_have_no_bars(draw, tmp_path, recwarn):
    draw(tmp_path / "picture")
    drawing = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert "95 %" not in drawing
    assert not recwarn.list


def test_no_figure_stays_open(tmp_path):
    DRAWN["loss"][0](tmp_path / "loss.png")
    assert plots.plt.get_fignums() == []


def test_pictures_need_no_screen():
    assert plots.matplotlib.get_backend().lower() == "agg"
