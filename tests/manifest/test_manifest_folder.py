"""A folder as a manifest: each file once, names that are no text, media of every suffix, clips of two files."""

import os
import sys
from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.manifest import AUDIO_SUFFIXES, VIDEO_SUFFIXES, Manifest
from mertool.manifest.suffixes import UNSUPPORTED_SUFFIXES


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def ids(manifest: Manifest) -> list[str]:
    return [clip.clip for clip in manifest.clips]


def touch_bytes(folder: Path, name: bytes) -> None:
    """Create a file whose name is not UTF-8, as those of an old Chinese archive; skip where that cannot be."""
    folder.mkdir(exist_ok=True)
    try:
        with open(os.path.join(os.fsencode(folder), name), "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")


# ---------------------------------------------------------------- the search


def test_a_folder_is_searched_recursively_in_a_stable_order(tmp_path):
    touch(tmp_path, "b.mp4", "deep/er/c.WAV", "a.flac", "notes.txt", "deep/d.mkv")
    manifest = Manifest.read(tmp_path)
    assert [clip.path.relative_to(tmp_path).as_posix() for clip in manifest.clips] == [
        "a.flac",
        "b.mp4",
        "deep/d.mkv",
        "deep/er/c.WAV",
    ]
    assert ids(manifest) == ["a", "b", "d", "c"]
    assert manifest.notes == ()


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    touch(tmp_path, "a.mp4", "._a.mp4", ".cache/b.mp4")
    assert ids(Manifest.read(tmp_path)) == ["a"]


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(MertoolError, match=r"holds no video or audio file \(searched recursively for .*\.mp4"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("suffix", [".mts", ".M2TS", ".vob", ".aiff", ".amr", ".weba", ".gif", ".ogv", ".caf", ".au"])
def test_media_of_less_usual_suffixes_are_clips(suffix, tmp_path):
    touch(tmp_path, f"a{suffix}")
    assert suffix.lower() in VIDEO_SUFFIXES | AUDIO_SUFFIXES
    assert ids(Manifest.read(tmp_path)) == ["a"]


def test_media_that_cannot_be_read_are_told_by_suffix_and_example(tmp_path):
    touch(tmp_path, "a.wav", "sub/raw.PCM", "sub/song.mid")
    manifest = Manifest.read(tmp_path)
    assert ids(manifest) == ["a"]
    (note,) = manifest.notes
    assert "2 media files of kinds that mertool does not read left out (.mid .pcm) (first: sub/raw.PCM)" in note


def test_a_folder_of_unsupported_media_alone_says_so(tmp_path):
    touch(tmp_path, "a.pcm")
    with pytest.raises(MertoolError, match=r"holds no video or audio file .*; 1 media file of kinds .*\.pcm"):
        Manifest.read(tmp_path)


def test_no_suffix_is_of_two_kinds():
    assert not VIDEO_SUFFIXES & AUDIO_SUFFIXES
    assert not (VIDEO_SUFFIXES | AUDIO_SUFFIXES) & UNSUPPORTED_SUFFIXES


# ---------------------------------------------------------------- links


def test_a_loop_of_links_ends_and_gives_each_file_once(tmp_path):
    touch(tmp_path, "x/a.mp4", "x/y/b.mp4")
    (tmp_path / "x" / "y" / "up").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "here").symlink_to(".")
    assert ids(Manifest.read(tmp_path)) == ["a", "b"]


def test_links_to_what_is_there_anyway_are_left_out_and_told(tmp_path):
    touch(tmp_path, "real/a.mp4", "real/b.mp4")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "a-link.mp4").symlink_to("real/a.mp4")
    os.link(tmp_path / "real" / "b.mp4", tmp_path / "real" / "c.mp4")
    manifest = Manifest.read(tmp_path)
    assert [clip.path for clip in manifest.clips] == [tmp_path / "real" / name for name in ("a.mp4", "b.mp4")]
    (note,) = manifest.notes
    assert "2 links to files that are in the folder anyway left out" in note


def test_links_to_files_elsewhere_are_followed(tmp_path):
    touch(tmp_path, "store/blob1.mp4", "store/more/c.mp4")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").symlink_to("../store/blob1.mp4")
    (tmp_path / "clips" / "sub").symlink_to("../store/more")
    manifest = Manifest.read(tmp_path / "clips")
    assert ids(manifest) == ["a", "c"]
    assert manifest.notes == ()


def test_a_link_that_leads_nowhere_is_a_clip_whose_file_is_missing(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "b.mp4").symlink_to("nowhere.mp4")
    assert ids(Manifest.read(tmp_path)) == ["a", "b"]


# ---------------------------------------------------------------- ids


def test_same_stems_in_two_folders(tmp_path):
    touch(tmp_path, "one/a.mp4", "two/a.mp4", "two/b.mp4")
    assert ids(Manifest.read(tmp_path)) == ["one__a", "two__a", "b"]


def test_one_stem_with_two_video_suffixes(tmp_path):
    touch(tmp_path, "a.mp4", "a.mkv", "sub/a.mp4")
    assert ids(Manifest.read(tmp_path)) == ["a.mkv", "a.mp4", "sub__a"]


@pytest.mark.parametrize(
    "names",
    [
        ("one/a.mp4", "two/a.mp4", "one__a.mp4"),
        ("a.mp4", "a.avi", "a.mp4.mkv"),
        ("bell\x07.mp4", "bell_.mp4"),
        ("e\u0301.mp4", "\u00e9.mp4"),
    ],
)
def test_ids_are_unique_whatever_the_names(names, tmp_path):
    touch(tmp_path, *names)
    found = ids(Manifest.read(tmp_path))
    assert len(set(found)) == len(list(tmp_path.rglob("*.m*"))) + len(list(tmp_path.rglob("*.avi"))), found


def test_an_unprintable_name_gives_a_printable_id(tmp_path):
    touch(tmp_path, "bell\x07.mp4")
    assert ids(Manifest.read(tmp_path)) == ["bell_"]


def test_ids_are_in_composed_form(tmp_path):
    touch(tmp_path, "cafe\u0301.mp4")
    assert ids(Manifest.read(tmp_path)) == ["caf\u00e9"]


# ---------------------------------------------------------------- names that are no text


def test_one_badly_named_file_does_not_refuse_the_folder(tmp_path):
    folder = tmp_path / "media"
    touch_bytes(folder, b"\xb2\xe2.mp4")
    touch(folder, "bell\x07.mp4", "good.mp4", "line\nbreak.mp4")
    found = Manifest.read(folder)
    assert len(found) == 4
    with pytest.raises(MertoolError, match=r"cannot name .*media/\\xb2\\xe2\.mp4, which is not in UTF-8: rename"):
        found.write(tmp_path / "clips.csv")
    named = found.named_in_utf8()
    named.write(tmp_path / "clips.csv")
    (note,) = named.notes
    assert "1 clip left out" in note
    assert r"media/\xb2\xe2.mp4" in note
    assert "bell" not in note
    again = Manifest.read(tmp_path / "clips.csv")
    assert sorted(clip.path.name for clip in again.clips) == ["bell\x07.mp4", "good.mp4", "line\nbreak.mp4"]
    assert all(clip.path.is_file() for clip in again.clips)


def test_a_locale_that_cannot_decode_names_is_blamed(tmp_path, run_cli):
    touch(tmp_path, "clips/测试.mp4", "clips/b.mp4")
    environment = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = run_cli("manifest", tmp_path / "clips", "-o", tmp_path / "clips.csv", **environment)
    assert done.returncode == 1
    assert "this locale has the encoding ascii" in done.stderr
    assert "names of 1 file cannot be read" in done.stderr
    assert "PYTHONUTF8=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    (tmp_path / "by-hand.csv").write_text("clip,path\na,clips/测试.mp4\n", encoding="utf-8")
    done = run_cli("extract", "audio", tmp_path / "by-hand.csv", "-o", tmp_path / "a.h5", **environment)
    assert done.returncode == 1
    assert "this locale has the encoding ascii" in done.stderr


# ---------------------------------------------------------------- one clip, two files


def pairs(folder: Path) -> list[tuple[str, str, str | None]]:
    return [
        (
            clip.clip,
            clip.path.relative_to(folder).as_posix(),
            clip.audio and clip.audio.relative_to(folder).as_posix(),
        )
        for clip in Manifest.read(folder).clips
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a.mp4", "a.wav", "b.mp4"), [("a", "a.mp4", "a.wav"), ("b", "b.mp4", None)]),
        (("video/a.mp4", "audio/a.wav"), [("a", "video/a.mp4", "audio/a.wav")]),
        (("s1/video/a.avi", "s1/wav/a.wav"), [("a", "s1/video/a.avi", "s1/wav/a.wav")]),
        (("a.mp4", "audio/a.wav"), [("a", "a.mp4", "audio/a.wav")]),
        (("a.mp4", "a.mp3", "a.flac"), [("a", "a.mp4", "a.flac")]),
        (("cafe\u0301.mp4", "caf\u00e9.wav"), [("caf\u00e9", "cafe\u0301.mp4", "caf\u00e9.wav")]),
        # Another speaker's recording of the same name is no sound of this one.
        (("s1/a.mp4", "s2/a.wav"), [("s1__a", "s1/a.mp4", None), ("s2__a", "s2/a.wav", None)]),
        (
            ("a.avi", "a.mp4", "a.wav"),
            [("a.avi", "a.avi", None), ("a.mp4", "a.mp4", None), ("a.wav", "a.wav", None)],
        ),
        (("one/a.wav", "two/a.wav"), [("one__a", "one/a.wav", None), ("two__a", "two/a.wav", None)]),
    ],
)
def test_a_video_and_the_audio_beside_it_are_one_clip(names, expected, tmp_path):
    touch(tmp_path, *names)
    assert pairs(tmp_path) == expected


def test_clips_of_two_files_are_told_in_one_line(tmp_path):
    touch(tmp_path, "a.mp4", "a.wav", "b.mp4", "b.wav", "b.mp3")
    notes = Manifest.read(tmp_path).notes
    assert notes == (
        "2 clips from two files: the picture of the video file, the sound of the audio file of the same name (first: "
        "a.mp4 and a.wav)",
        "1 audio file beside a better one of the same name left out (first: b.mp3)",
    )
    assert sys.getfilesystemencoding() == "utf-8"
