"""The manifest: reading, searching a folder, every fault at once, and writing what is read again."""

from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.manifest import EMOTIONS, Clip, Manifest, canonical_label, parse_classes, with_annotations


def read(tmp_path: Path, text: str, encoding: str = "utf-8") -> Manifest:
    path = tmp_path / "clips.csv"
    path.write_bytes(text.encode(encoding))
    return Manifest.read(path)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def ids(manifest: Manifest) -> list[str]:
    return [clip.clip for clip in manifest.clips]


# ---------------------------------------------------------------- CSV


def test_every_column_is_read(tmp_path):
    manifest = read(
        tmp_path,
        "clip,path,label,text,speaker,split,start,end\n"
        'a,media/a.mp4,happy,"Well, yes.",s1,train,0.5,2\n'
        "b,b.wav,,,,,,\n",
    )
    first = Clip(
        clip="a",
        path=tmp_path / "media/a.mp4",
        label="happy",
        text="Well, yes.",
        speaker="s1",
        split="train",
        start=0.5,
        end=2.0,
    )
    assert manifest.clips == (first, Clip(clip="b", path=tmp_path / "b.wav"))
    assert manifest.speakers() == {"a": "s1"}


def test_a_byte_order_mark_chinese_and_spaces(tmp_path):
    manifest = read(tmp_path, "clip,path,text\r\n测试 clip,测试 文件.mp4,我很高兴，真的。\r\n", "utf-8-sig")
    assert manifest.clips == (Clip(clip="测试 clip", path=tmp_path / "测试 文件.mp4", text="我很高兴，真的。"),)


def test_columns_in_any_order_and_case_and_empty_lines(tmp_path):
    manifest = read(tmp_path, "Path, Clip \na.mp4,a\n\n,\nb.mp4,b\n")
    assert ids(manifest) == ["a", "b"]


def test_every_fault_is_reported_at_once(tmp_path):
    with pytest.raises(MertoolError) as caught:
        read(
            tmp_path,
            "clip,path,split,start,end\n"
            "a,a.mp4,train,,\n"
            "a,b.mp4,tain,,\n"
            "x/y,c.mp4,,,\n"
            "d,,test,,\n"
            "e,e.mp4,,soon,\n"
            "f,f.mp4,,3,2\n"
            "g,g.mp4,,-1,\n"
            "h,h.mp4\n",
        )
    message = str(caught.value)
    for words in (
        "clips.csv: 8 faults",
        "row 3: unknown split 'tain': did you mean 'train'? valid: train, test, unlabelled",
        "row 3: clip id 'a' stands already in row 2",
        "row 4: clip id 'x/y' must be printable and hold no '/'",
        "row 5: path is empty",
        "row 6: start 'soon' is not a number of seconds",
        "row 7: start 3.0 and end 2.0: 0 <= start < end is needed",
        "row 8: start -1.0 and end None",
        "row 9 has 2 cells, the header 5",
    ):
        assert words in message


@pytest.mark.parametrize("times", ["nan,2", "0,nan", "inf,", "0,inf"])
def test_times_are_finite(times, tmp_path):
    with pytest.raises(MertoolError, match="row 2: "):
        read(tmp_path, f"clip,path,start,end\na,a.mp4,{times}\n")


def test_many_faults_are_cut_short(tmp_path):
    with pytest.raises(MertoolError, match=r"30 faults: .*; and 10 more$"):
        read(tmp_path, "clip,path,split\n" + "".join(f"c{n},c.mp4,dev\n" for n in range(30)))


def test_unknown_repeated_and_missing_columns_at_once(tmp_path):
    with pytest.raises(MertoolError) as caught:
        read(tmp_path, "clip,lable,text,text\na,happy,,\n")
    message = str(caught.value)
    assert "3 faults" in message
    assert "unknown column 'lable': did you mean 'label'? valid: clip,path,label" in message
    assert "column 'text' stands twice" in message
    assert "column 'path' is missing" in message


def test_an_unprintable_id(tmp_path):
    with pytest.raises(MertoolError, match="must be printable"):
        read(tmp_path, "clip,path\na\x07,a.mp4\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "column 'clip' is missing"), ("clip,path\n", "holds no clip: a header and at least one row")],
)
def test_an_empty_file(text, words, tmp_path):
    with pytest.raises(MertoolError, match=words):
        read(tmp_path, text)


def test_a_file_that_is_not_utf8(tmp_path):
    with pytest.raises(MertoolError, match="is not a CSV file in UTF-8"):
        read(tmp_path, "clip,path\n测试,a.mp4\n", "gb18030")


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(MertoolError, match=r"nowhere\.csv does not exist: give a manifest CSV or a folder"):
        Manifest.read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("name", ["a.mp4", "A.WAV"])
def test_a_media_file_as_source(name, tmp_path):
    touch(tmp_path, name)
    with pytest.raises(MertoolError, match="is a media file: give the folder it lies in, or a manifest CSV"):
        Manifest.read(tmp_path / name)


# ---------------------------------------------------------------- folders


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


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    touch(tmp_path, "a.mp4", "._a.mp4", ".cache/b.mp4")
    assert ids(Manifest.read(tmp_path)) == ["a"]


def test_same_stems_in_two_folders(tmp_path):
    touch(tmp_path, "one/a.mp4", "two/a.mp4", "two/b.mp4")
    assert ids(Manifest.read(tmp_path)) == ["one__a", "two__a", "b"]


def test_one_stem_with_two_suffixes(tmp_path):
    touch(tmp_path, "a.mp4", "a.wav", "sub/a.mp4")
    assert ids(Manifest.read(tmp_path)) == ["a.mp4", "a.wav", "sub__a"]


@pytest.mark.parametrize(
    "names",
    [
        ("one/a.mp4", "two/a.mp4", "one__a.mp4"),
        ("a.mp4", "a.wav", "a.mp4.mkv"),
        ("bell\x07.mp4", "bell_.mp4"),
    ],
)
def test_ids_are_unique_whatever_the_names(names, tmp_path):
    touch(tmp_path, *names)
    found = ids(Manifest.read(tmp_path))
    assert len(set(found)) == len(names), found


def test_an_unprintable_name_gives_a_printable_id(tmp_path):
    touch(tmp_path, "bell\x07.mp4")
    assert ids(Manifest.read(tmp_path)) == ["bell_"]


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(MertoolError, match=r"holds no video or audio file \(searched recursively for .*\.mp4"):
        Manifest.read(tmp_path)


# ---------------------------------------------------------------- writing


def test_what_is_written_is_read_again(tmp_path):
    touch(tmp_path, "media/a.mp4")
    clips = (
        Clip(
            clip="a",
            path=tmp_path / "media/a.mp4",
            label="happy",
            text='He said "no",\nthen 好.',
            speaker="s 1",
            split="train",
            start=0.25,
            end=1.5,
        ),
        Clip(clip="测试 b", path=tmp_path / "media/b, c.mp4", split="unlabelled"),
    )
    Manifest(clips, tmp_path).write(tmp_path / "out" / "clips.csv")
    again = Manifest.read(tmp_path / "out" / "clips.csv")
    assert [clip.path.resolve() for clip in again.clips] == [clip.path.resolve() for clip in clips]
    assert again.digest() == Manifest(clips, tmp_path).digest()
    assert again.clips[0].text == clips[0].text


def test_written_paths_are_relative_to_the_manifest(tmp_path, monkeypatch):
    touch(tmp_path, "media/a.mp4")
    monkeypatch.chdir(tmp_path)
    Manifest.read(Path("media")).write(Path("lists/clips.csv"))
    assert "\na,../media/a.mp4,," in (tmp_path / "lists/clips.csv").read_text()


def test_the_folder_of_data_and_manifest_can_move(tmp_path):
    touch(tmp_path, "old/media/a.mp4")
    Manifest.read(tmp_path / "old" / "media").write(tmp_path / "old" / "clips.csv")
    (tmp_path / "old").rename(tmp_path / "new")
    assert Manifest.read(tmp_path / "new" / "clips.csv").clips[0].path.is_file()


@pytest.mark.parametrize("name", [" a.mp4", "a .mp4", "a,b.mp4", 'it\'s "a".mp4'])
def test_spaces_and_marks_of_file_names_survive(name, tmp_path):
    touch(tmp_path, f"media/{name}")
    found = Manifest.read(tmp_path / "media")
    found.write(tmp_path / "clips.csv")
    again = Manifest.read(tmp_path / "clips.csv")
    assert again.clips[0].path.is_file()
    assert ids(again) == ids(found)


def test_a_name_that_is_no_text_is_a_clear_error_or_kept(tmp_path):
    """Names are bytes on Linux; those of an old Chinese archive are often GBK."""
    import os

    folder = tmp_path / "media"
    folder.mkdir()
    try:
        with open(os.fsencode(folder) + b"/\xb2\xe2.mp4", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    found = Manifest.read(folder)
    try:
        found.write(tmp_path / "clips.csv")
    except MertoolError as error:
        str(error).encode()
    else:
        assert Manifest.read(tmp_path / "clips.csv").clips[0].path.is_file()


# ---------------------------------------------------------------- labels


def labelled(*labels: tuple[str | None, str | None]) -> Manifest:
    clips = [
        Clip(clip=f"c{n}", path=Path("x.mp4"), label=label, split=split) for n, (label, split) in enumerate(labels)
    ]
    return Manifest(tuple(clips), Path("clips.csv"))


def test_labels_of_training_clips_are_canonical():
    manifest = labelled(
        ("Happy", None),
        ("anger", "train"),
        ("worry", "train"),
        ("sad", "test"),
        ("neutral", "unlabelled"),
        (None, None),
    )
    assert manifest.training_labels() == {"c0": "happy", "c1": "angry", "c2": "worried"}
    assert manifest.known_labels() == {"c0": "happy", "c1": "angry", "c2": "worried", "c3": "sad"}


@pytest.mark.parametrize(
    ("label", "name"),
    [("anger", "angry"), ("happiness", "happy"), ("sadness", "sad"), ("worry", "worried"), ("surprised", "surprise")],
)
def test_the_aliases_of_the_field(label, name):
    assert canonical_label(f" {label.upper()} ", EMOTIONS) == name


def test_an_alias_is_no_label_of_another_set():
    assert canonical_label("worry", ("happy", "sad")) is None


def test_unknown_labels_are_counted_with_a_way_out():
    manifest = labelled(("hapy", None), ("hapy", None), ("bored", None), ("sad", None))
    with pytest.raises(MertoolError) as caught:
        manifest.training_labels()
    for words in ("clips.csv", "'hapy' (2 clips), 'bored' (1 clips)", "did you mean 'happy'?", "--classes a,b,c"):
        assert words in str(caught.value)
    assert "'hapy' (2 clips)" in manifest.describe_unknown_labels()
    assert labelled(("sad", None)).describe_unknown_labels() == ""


def test_another_set_of_classes():
    assert labelled(("Calm", None)).training_labels(("calm", "tense")) == {"c0": "calm"}


def test_classes_are_parsed():
    assert parse_classes(" Calm, tense ,") == ("calm", "tense")


@pytest.mark.parametrize("text", ["", "calm", "calm,calm"])
def test_too_few_or_repeated_classes(text):
    with pytest.raises(MertoolError, match="at least two different names"):
        parse_classes(text)


def test_facts_fill_in_labels_and_splits():
    manifest = labelled((None, None), (None, None), (None, None))
    filled = with_annotations(
        manifest, labels={"c0": "sad", "c1": "happy"}, texts={"c0": "Oh."}, speakers={"c2": "s1"}, splits={"c1": "test"}
    )
    assert [(c.label, c.split, c.text, c.speaker) for c in filled.clips] == [
        ("sad", "train", "Oh.", None),
        ("happy", "test", None, None),
        (None, "unlabelled", None, "s1"),
    ]
    assert [c.split for c in with_annotations(manifest).clips] == [None, None, None]


# ---------------------------------------------------------------- digests


def test_the_digest_is_of_what_training_depends_on():
    one, other = labelled(("sad", "train")), labelled(("happy", "train"))
    moved = Manifest((Clip(clip="c0", path=Path("elsewhere.mp4"), label="sad", split="train"),), Path("other.csv"))
    assert one.digest() == moved.digest() != other.digest()


def test_the_digest_of_a_clip_follows_its_file_and_its_part(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(300_000))
    whole = Clip(clip="a", path=path).digest()
    assert Clip(clip="b", path=path).digest() == whole
    assert (
        len(
            {
                whole,
                Clip(clip="a", path=path, start=1.0).digest(),
                Clip(clip="a", path=path, start=1.0, end=2.0).digest(),
            }
        )
        == 3
    )
    for place in (0, 150_000, 299_999):
        changed = bytearray(300_000)
        changed[place] = 1
        path.write_bytes(changed)
        assert Clip(clip="a", path=path).digest() != whole
