"""Several sources: every file once, every clip id once, whatever the order."""

import pytest

from mertool.errors import MertoolError
from mertool.sources import read_sources


@pytest.fixture
def media(tmp_path):
    """A function (path) that makes a file below the test's folder, and returns its path."""

    def make(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        return path

    return make


def ids_by_path(sources):
    return {clip.path: clip.clip for clip in read_sources(sources).clips}


def test_one_source_is_as_it_is(media, tmp_path):
    media("a/x.mp4"), media("a/deep/y.wav")
    assert [clip.clip for clip in read_sources([tmp_path / "a"]).clips] == ["x", "y"]


def test_a_media_file_is_a_source(media):
    path = media("my clip.MP4")
    (clip,) = read_sources([path]).clips
    assert (clip.clip, clip.path) == ("my clip", path)


def test_equal_ids_are_named_after_their_folders_whatever_the_order(media, tmp_path):
    first, second, third = media("a/x.mp4"), media("b/x.mp4"), media("b/y.mp4")
    expected = {first: "a__x", second: "b__x", third: "y"}
    assert ids_by_path([tmp_path / "a", tmp_path / "b"]) == expected
    assert ids_by_path([third, second, first]) == expected
    assert [clip.path for clip in read_sources([first, third, second]).clips] == [first, third, second]


def test_as_few_folders_as_tell_them_apart(media):
    one, two = media("2019/clips/x.mp4"), media("2020/clips/x.mp4")
    assert ids_by_path([one, two]) == {one: "2019__clips__x", two: "2020__clips__x"}


def test_a_name_that_is_taken_gets_a_number(media):
    paths = [media("a/x.mp4"), media("b/x.mp4"), media("a__x.mp4")]
    assert list(ids_by_path(paths).values()) == ["a__x_2", "b__x", "a__x"]


def test_files_that_differ_in_their_suffix(media):
    paths = [media("a/x.mp4"), media("a/x.mkv")]
    assert sorted(ids_by_path(paths).values()) == ["a__x.mkv", "a__x.mp4"]


def test_a_file_that_two_sources_name_counts_once(media, tmp_path):
    path = media("a/x.mp4")
    (tmp_path / "link.mp4").symlink_to(path)
    assert [clip.clip for clip in read_sources([path, tmp_path / "a", tmp_path / "link.mp4"]).clips] == ["x"]


def test_parts_of_one_file_in_two_manifests_are_different_clips(media, tmp_path):
    media("x.mp4")
    for number in (1, 2):
        (tmp_path / f"{number}.csv").write_text(f"clip,path,start,end\nx,x.mp4,{number},{number + 1}\n")
    clips = read_sources([tmp_path / "1.csv", tmp_path / "2.csv"]).clips
    assert [(clip.start, clip.end) for clip in clips] == [(1, 2), (2, 3)]
    assert len({clip.clip for clip in clips}) == 2


def test_no_source():
    with pytest.raises(MertoolError, match="no source was given"):
        read_sources([])
