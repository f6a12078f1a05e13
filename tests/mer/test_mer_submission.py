"""data/mer: the check of a submission, and the stages that differ between the years, on one bundle for all."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mertool.errors import MertoolError

# As in MERTools' globals.py.
WORDS = ["neutral", "angry", "happy", "sad", "worried", "surprise"]
PATIENT = ("--clip-timeout", 600)  # for a machine that does other work, too
GOOD = "name,discrete\nb,happy\na,sad\n"


def accepted_by_mertools(submission: Path, names: tuple[str, ...], *, valence: bool) -> bool:
    """Read a submission as the scoring scripts of MERTools do: rows by name, words by their index."""
    with open(submission, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    index_of = {word: number for number, word in enumerate(WORDS)}
    predicted = {row["name"]: index_of[row["discrete"]] for row in rows}
    if valence:
        assert all(-5 <= float(row["valence"]) <= 5 for row in rows)
    assert len(rows) == len(predicted) == len(names)
    return [predicted[name] for name in names] != []


# ---------------------------------------------------------------- the check


@pytest.fixture
def check(mer_scripts: SimpleNamespace, tmp_path: Path) -> Callable[..., int]:
    """A function (content, year) that checks a submission for the candidates a and b."""

    def run(content: str, year: str = "2024") -> int:
        (tmp_path / "candidates.csv").write_text("name\na\nb\n")
        (tmp_path / "submission.csv").write_text(content)
        row = mer_scripts.years.read_years()[year]
        return mer_scripts.check.check_submission(tmp_path / "submission.csv", tmp_path / "candidates.csv", row)

    return run


@pytest.mark.parametrize(
    ("content", "year"), [(GOOD, "2024"), (GOOD, "2026"), ("name,discrete,valence\na,sad,0\nb,happy,-1.5\n", "2023")]
)
def test_a_good_submission(content, year, check):
    assert check(content, year) == 2


@pytest.mark.parametrize(
    ("content", "year", "words"),
    [
        (GOOD, "2023", "columns name,discrete instead of name,discrete,valence"),
        ("", "2024", "columns none instead of name,discrete"),
        ("name,discrete,valence\na,sad,0\nb,sad,0\n", "2025", "columns name,discrete,valence instead of name,discrete"),
        ("name,discrete\na,sad\n", "2024", "candidates without a row: 1 (b)"),
        (GOOD + "c,sad\n", "2024", "names that are no candidates: 1 (c)"),
        (GOOD + "a,sad\n", "2024", "names that are listed more than once: 1 (a)"),
        (GOOD.replace("sad", "sadness"), "2024", "labels that are none of the challenge's: 1 (sadness)"),
        (GOOD.replace("sad", "Sad"), "2025", "labels that are none of the challenge's: 1 (Sad)"),
        ("name,discrete,valence\na,sad,0\nb,sad,\n", "2023", "rows whose valence is no number: 1 (b)"),
        ("name,discrete,valence\na,sad,nan\nb,sad,0\n", "2023", "rows whose valence is no number: 1 (a)"),
    ],
)
def test_what_the_scoring_scripts_would_stumble_over(content, year, words, check):
    with pytest.raises(MertoolError) as caught:
        check(content, year)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once(check):
    with pytest.raises(
        MertoolError, match=r"3 faults: candidates without a row.*no candidates.*none of the challenge's"
    ):
        check("name,discrete\na,sad\nc,joy\n")


def test_the_check_as_a_script(mer_scripts, monkeypatch, tmp_path, capsys):
    (tmp_path / "s.csv").write_text(GOOD)
    monkeypatch.setattr("sys.argv", ["check.py", "2024", str(tmp_path / "s.csv"), str(tmp_path / "s.csv")])
    mer_scripts.check.main()
    assert "2 rows, name,discrete: accepted by the rules of MER2024" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["check.py", "2024", str(tmp_path / "none.csv"), str(tmp_path / "s.csv")])
    with pytest.raises(SystemExit, match=r"^Error: .*none\.csv does not exist"):
        mer_scripts.check.main()


# ---------------------------------------------------------------- from a release to a submission, on one bundle


@pytest.fixture
def submit(
    make_release: Any, mer_scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, call: Any, tmp_path: Path
) -> Callable[..., Any]:
    """A function (year, bundle) that predicts the clips to submit of a stand-in release; its release and output."""

    def run(year: str, bundle: Path) -> Any:
        release = make_release(tmp_path / f"mer{year}-dataset", year)
        monkeypatch.setattr("sys.argv", ["prepare.py", year, str(release.folder), str(tmp_path)])
        mer_scripts.prepare.main()
        candidates = tmp_path / "candidates.csv"
        given = ["--submission", f"mer{year}", "--candidates", candidates, "--max-failed", 1, *PATIENT]
        result = call("predict", bundle, candidates, "-o", tmp_path / "predictions.csv", *given)
        submission = tmp_path / f"predictions.mer{year}.csv"
        row = mer_scripts.years.read_years()[year]
        assert mer_scripts.check.check_submission(submission, candidates, row) == len(release.candidates)
        assert accepted_by_mertools(submission, release.candidates, valence=year == "2023")
        with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
            predictions = {line["clip"]: line for line in csv.DictReader(file)}
        return SimpleNamespace(release=release, result=result, predictions=predictions)

    return run


@pytest.fixture(scope="module")
def make_small_bundle(
    make_bundle: Any, demo_rows: Any, write_manifest: Any, tiny_encoders: Any, call: Any, tmp_path_factory: Any
) -> Callable[..., Path]:
    """A function (modalities) that writes a bundle over features of three clips."""
    folder = tmp_path_factory.mktemp("small")
    manifest = write_manifest(
        folder / "clips.csv", [demo_rows[clip] for clip in ("spk01_005", "spk02_003", "spk04_002")]
    )
    encoder_of = {"audio": "hubert", "video": "clip", "text": "bert"}

    def make(*modalities: str) -> Path:
        stores = [folder / f"{modality}.h5" for modality in modalities]
        for modality, store in zip(modalities, stores, strict=True):
            options = ["--fps", 1, "--no-keep-faces"] if modality == "video" else []
            encoder = tiny_encoders[encoder_of[modality]]
            call(
                "extract",
                modality,
                manifest,
                "-o",
                store,
                "--encoder",
                encoder,
                "--max-failed",
                1,
                "-q",
                *options,
                *PATIENT,
            )
        return make_bundle(folder / "-".join(modalities), stores)

    return make


@pytest.mark.parametrize("year", ["2023", "2025"])
def test_a_submission_of_each_year(year, submit, make_small_bundle):
    """That of 2024 is made by Make elsewhere; 2023 wants a valence, 2025 has audio and subtitles beside the videos."""
    submitted = submit(year, make_small_bundle("audio", "video", "text"))
    predictions = submitted.predictions
    assert predictions["samplenew3_00000101"]["modalities"] == ("audio" if year == "2023" else "audio+text")
    assert "video: no_video" in predictions["samplenew3_00000101"]["missing"]
    assert "text: no_text" in predictions["sample_00000102"]["missing"]


def test_the_listener_is_predicted_from_the_picture(submit, make_small_bundle):
    """MER-Cross: audio and words are another person's, so the bundle of 2026 is of visual features."""
    submitted = submit("2026", make_small_bundle("video"))
    assert {line["modalities"] for line in submitted.predictions.values()} == {"video"}
    # A clip without a picture gets the most frequent class, and is named.
    assert "samplenew3_00000101" not in submitted.predictions
    assert "samplenew3_00000101" in submitted.result.stderr
