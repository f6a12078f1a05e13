"""data/mer: from stand-in releases of all years to manifests, and folders and lists that are refused."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS, Manifest
from mertool.options.predict import SUBMISSIONS

YEARS = ("2023", "2024", "2025", "2026")


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory, make_release: Any) -> dict[str, Any]:
    """Stand-ins of all years, which stay as they are."""
    return {year: make_release(tmp_path_factory.mktemp("release") / f"mer{year}-dataset", year) for year in YEARS}


@pytest.fixture
def read(mer_scripts: SimpleNamespace) -> Callable[..., Any]:
    """A function (folder, year, candidates) that reads a release."""

    def run(folder: Path, year: str, candidates: Path | None = None) -> Any:
        return mer_scripts.release.read_release(folder, mer_scripts.years.read_years()[year], candidates)

    return run


def refusal(read: Callable[..., Any], *given: Any) -> str:
    with pytest.raises(MertoolError) as caught:
        read(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("year", YEARS)
def test_the_table_agrees_with_the_package(year, mer_scripts):
    row = mer_scripts.years.read_years()[year]
    assert row.classes == EMOTIONS
    assert ",".join(row.submission) == SUBMISSIONS[f"mer{year}"]


def test_make_reads_entries_of_the_table(mer_scripts, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["years.py", "2026", "fused"])
    mer_scripts.years.main()
    assert capsys.readouterr().out == "aligned video\n"
    monkeypatch.setattr("sys.argv", ["years.py", "2022", "fused"])
    with pytest.raises(SystemExit, match="unknown YEAR '2022': valid: 2026, 2025, 2024, 2023"):
        mer_scripts.years.main()


# ---------------------------------------------------------------- manifests


@pytest.mark.parametrize("year", YEARS)
def test_training_clips_have_their_labels_and_no_other_clip_has_one(year, releases, read, demo_rows):
    release, stand_in = read(releases[year].folder, year), releases[year]
    assert [clip.clip for clip in release.labelled] == list(stand_in.labelled)
    assert [clip.label for clip in release.labelled] == [
        demo_rows[stand_in.clips[name]]["label"] for name in stand_in.labelled
    ]
    assert {clip.split for clip in release.labelled} == {"train"}
    assert {clip.label for clip in (*release.candidates, *release.others)} == {None}
    assert {clip.split for clip in release.others} == {"unlabelled"}


@pytest.mark.parametrize("year", YEARS)
def test_clips_to_submit_are_in_the_order_of_their_list_and_train_nothing(year, releases, read):
    release, stand_in = read(releases[year].folder, year), releases[year]
    assert [clip.clip for clip in release.candidates] == list(stand_in.candidates)
    assert {clip.split for clip in release.candidates} == {"test"}
    assert [clip.clip for clip in release.others] == sorted(stand_in.others)


@pytest.mark.parametrize("year", YEARS)
def test_every_file_of_the_manifest_exists(year, releases, read):
    release = read(releases[year].folder, year)
    for clip in (*release.labelled, *release.candidates, *release.others):
        assert clip.path.is_file()
        assert clip.path.stem == clip.clip


@pytest.mark.parametrize("year", ["2025", "2026"])
def test_audio_is_read_from_the_files_beside_the_videos(year, releases, read):
    for clip in read(releases[year].folder, year).candidates:
        assert clip.audio == releases[year].folder / "audio" / f"{clip.clip}.wav"


def test_empty_transcripts_and_nan_are_none(releases, read):
    release = read(releases["2025"].folder, "2025")
    texts = {clip.clip: clip.text for clip in (*release.labelled, *release.candidates)}
    assert [texts[f"sample_0000000{number}"] for number in (1, 2)] == [None, None]
    assert texts["sample_00000102"] is None
    assert texts["sample_00000000"]


def test_transcripts_of_2024_are_of_the_training_clips(releases, read):
    release = read(releases["2024"].folder, "2024")
    # Two are empty or NaN, and a clip of the demo has none.
    assert sum(clip.text is not None for clip in release.labelled) == len(release.labelled) - 3
    assert {clip.text for clip in (*release.candidates, *release.others)} == {None}


def test_2023_takes_another_track_by_its_list(releases, read, mer_scripts, tmp_path):
    folder = shutil.copytree(releases["2023"].folder, tmp_path / "mer2023")
    (folder / "mer2023train" / "test3" / "sample_00000100.mp4").rename(folder / "test1" / "sample_00000100.mp4")
    multi = folder / "test-labels" / "test1-label.csv"
    multi.write_text("name,discrete,valence\nsample_00000100,happy,2.0\n")
    release = read(folder, "2023", multi)
    assert [clip.clip for clip in release.candidates] == ["sample_00000100"]
    assert release.candidates[0].path == folder / "test1" / "sample_00000100.mp4"


def test_the_number_of_clips_that_the_organisers_announced_is_told(releases, read):
    notes = read(releases["2025"].folder, "2025").notes
    assert len(notes) == 1
    assert "names 4 clips, MER2025 announced 20000" in notes[0]


def test_a_release_without_its_audio_folder_is_read_from_the_videos(releases, read, tmp_path):
    folder = shutil.copytree(releases["2026"].folder, tmp_path / "mer2026", ignore=shutil.ignore_patterns("audio"))
    release = read(folder, "2026")
    assert {clip.audio for clip in release.labelled} == {None}
    assert f"{folder} has no folder audio: audio is read from the videos" in release.notes


def prepare(mer_scripts, monkeypatch, *given: object) -> None:
    monkeypatch.setattr("sys.argv", ["prepare.py", *map(str, given)])
    mer_scripts.prepare.main()


def test_manifests_are_written(releases, mer_scripts, monkeypatch, capsys, tmp_path):
    prepare(mer_scripts, monkeypatch, "2025", releases["2025"].folder, tmp_path, "--unlabelled", "2")
    clips, labelled, candidates = (
        Manifest.read(tmp_path / f"{name}.csv") for name in ("clips", "labelled", "candidates")
    )
    assert [clip.clip for clip in labelled.clips] == list(releases["2025"].labelled)
    assert [clip.split for clip in clips.clips] == ["train"] * len(labelled) + ["unlabelled"] * 2
    assert [clip.clip for clip in candidates.clips] == list(releases["2025"].candidates)
    assert not {clip.clip for clip in clips.clips} & {clip.clip for clip in candidates.clips}
    assert all(file.is_file() for manifest in (clips, candidates) for clip in manifest.clips for file in clip.files)
    output = capsys.readouterr()
    assert f"labelled: {len(labelled)} (" in output.out
    assert "unlabelled: 2 of 3" in output.out
    assert "to submit: 4" in output.out
    assert "note:" in output.err


@pytest.mark.parametrize(("count", "expected"), [("all", 3), ("0", 0), ("2", 2)])
def test_the_sample_of_unlabelled_clips(count, expected, releases, read, mer_scripts):
    others = read(releases["2024"].folder, "2024").others
    drawn = mer_scripts.prepare.sample(others, count)
    assert len(drawn) == expected
    assert drawn == mer_scripts.prepare.sample(others[::-1], count)


def test_a_number_of_unlabelled_clips_that_is_none(mer_scripts):
    with pytest.raises(MertoolError, match="UNLABELLED=many: give a number of clips, or all"):
        mer_scripts.prepare.sample([], "many")


# ---------------------------------------------------------------- what is refused, each in one line


@pytest.mark.parametrize(("given", "wanted"), [("2023", "2024"), ("2024", "2025"), ("2025", "2026"), ("2026", "2025")])
def test_a_release_of_another_year(given, wanted, releases, read):
    message = refusal(read, releases[given].folder, wanted)
    assert f"of MER{wanted}: it is the release of MER{given}" in message
    assert f"give YEAR={given}" in message


def test_the_folder_that_mertools_makes_of_a_release(read, tmp_path):
    (tmp_path / "video").mkdir()
    (tmp_path / "track1_label_6way.npz").touch()
    message = refusal(read, tmp_path, "2025")
    assert "it is what MERTools makes of a release (track1_label_6way.npz): give the release itself" in message


@pytest.mark.parametrize("kind", ["empty", "missing"])
def test_a_folder_that_is_no_release(kind, read, tmp_path):
    folder = tmp_path if kind == "empty" else tmp_path / "nowhere"
    hint = "has no label-disdim.csv of MER2024" if kind == "empty" else "is no folder"
    assert f"RELEASE {folder} {hint}" in refusal(read, folder, "2024")


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        (
            "video-labeled/sample_00000005.mp4",
            "1 of 24 training clips have no file in video-labeled (first: sample_00000005)",
        ),
        ("video-unlabeled-with-test2noise/sample_00000102.mp4", "1 of 4 clips to submit have no file"),
        ("video-unlabeled-with-test2noise", "has no folder video-unlabeled-with-test2noise"),
        ("label-transcription.csv", "has no label-transcription.csv, the transcripts of MER2024"),
        ("candidate_20000.csv", "give CANDIDATES=/path/to/it"),
    ],
)
def test_a_release_that_is_not_completely_unpacked(remove, words, make_release, read, tmp_path):
    folder = make_release(tmp_path / "mer2024-dataset", "2024").folder
    victim = folder / remove
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    message = refusal(read, folder, "2024")
    assert words in message
    assert str(folder) in message


def test_a_release_whose_audio_is_not_completely_unpacked(make_release, read, tmp_path):
    folder = make_release(tmp_path / "mer2026-dataset", "2026").folder
    (folder / "audio" / "sample_00000100.wav").unlink()
    message = refusal(read, folder, "2026")
    assert "1 of 28 clips have no file in audio (first: sample_00000100): unpack the rest" in message


def test_a_folder_of_videos_that_is_still_empty(make_release, read, tmp_path):
    folder = make_release(tmp_path / "mer2024-dataset", "2024").folder
    for file in (folder / "video-unlabeled-with-test2noise").iterdir():
        file.unlink()
    assert "4 of 4 clips to submit have no file" in refusal(read, folder, "2024")


def write_list(path: Path, *names: str) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("name",), *((name,) for name in names)])
    return path


def test_a_list_that_is_not_the_one_of_the_release(releases, read, tmp_path):
    """The releases of 2025 and 2026 share their clips, so names alone do not tell the lists apart."""
    other = write_list(tmp_path / "track_all_candidates.csv", *releases["2026"].others)
    message = refusal(read, releases["2026"].folder, "2026", other)
    assert "names other clips than track1_track2_candidate.csv of the release" in message
    assert "not the list of MER2026" in message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("clip_1", "clip_2"), "names 2 clips, none of which is in the release (first: clip_1)"),
        (("sample_00000100", "sample_00000000"), "labelled for training: 1 (sample_00000000)"),
    ],
)
def test_a_list_of_another_challenge(names, words, make_release, read, tmp_path):
    folder = make_release(tmp_path / "mer2024-dataset", "2024").folder
    (folder / "candidate_20000.csv").unlink()
    message = refusal(read, folder, "2024", write_list(tmp_path / "other.csv", *names))
    assert words in message
    assert "the list of another challenge, give that of MER2024" in message


def test_a_label_that_is_none_of_the_challenge(make_release, read, tmp_path):
    folder = make_release(tmp_path / "mer2026-dataset", "2026").folder
    path = folder / "track1_train.csv"
    path.write_text(path.read_text().replace("worried", "bored"))
    assert "unknown labels 'bored'" in refusal(read, folder, "2026")


def test_faults_end_the_script_in_one_line(mer_scripts, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"^Error: where is the release\? Give RELEASE=/path"):
        prepare(mer_scripts, monkeypatch, "2024", "", tmp_path)
