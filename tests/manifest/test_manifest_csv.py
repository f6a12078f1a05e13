"""The CSV of a manifest: every fault at once, and what is written is read again; digests."""

from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.manifest import Clip, Manifest


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
        "clip,path,label,text,speaker,split,start,end,audio,gender\n"
        'a,media/a.mp4,happy,"Well, yes.",s1,train,0.5,2,sounds/a.wav,female\n'
        "b,b.wav,,,,,,,,\n",
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
        audio=tmp_path / "sounds/a.wav",
        gender="female",
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
            "d,,,,\n"
            "e,e.mp4,,soon,\n"
            "f,f.mp4,,3,2\n"
            "g,g.mp4,,-1,\n"
            "h,h.mp4\n",
        )
    message = str(caught.value)
    for words in (
        "clips.csv: 8 faults",
        "row 3: unknown split 'tain': did you mean 'train'? valid: train, dev, test, unlabelled",
        "row 3: clip id 'a' stands already in row 2",
        "row 4: clip id 'x/y' must be printable and hold no '/'",
        "row 5: path is empty, and there is no text, label or split either",
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
        read(tmp_path, "clip,path,split\n" + "".join(f"c{n},c.mp4,deb\n" for n in range(30)))


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


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le"])
def test_a_file_in_another_encoding_is_read_and_told(encoding, tmp_path):
    manifest = read(tmp_path, "clip;path\n测试;a.mp4\n", encoding)
    assert ids(manifest) == ["测试"]
    assert f"is read as {encoding.upper()}" in manifest.notes[0]


def test_rows_of_text_alone_have_no_path(tmp_path):
    manifest = read(tmp_path, "clip,path,text,audio\na,,Well.,\nb,,,b.wav\n")
    text_alone, audio_alone = manifest.clips
    assert (text_alone.path, text_alone.media_path("audio"), text_alone.digest()) == (None, None, "")
    assert (audio_alone.path, audio_alone.media_path("audio")) == (None, tmp_path / "b.wav")
    manifest.write(tmp_path / "again.csv")
    assert Manifest.read(tmp_path / "again.csv").clips == manifest.clips


def test_ids_and_speakers_are_in_composed_form(tmp_path):
    manifest = read(tmp_path, "clip,path,speaker\ncafe\u0301,a.mp4,Jose\u0301\n")
    assert (manifest.clips[0].clip, manifest.clips[0].speaker) == ("caf\u00e9", "Jos\u00e9")


def test_a_text_of_a_megabyte(tmp_path):
    manifest = read(tmp_path, f"clip,path,text\na,a.mp4,{'好' * 1_000_000}\n")
    assert len(manifest.clips[0].text) == 1_000_000


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(MertoolError, match=r"nowhere\.csv does not exist: give a manifest CSV or a folder"):
        Manifest.read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("name", ["a.mp4", "A.WAV"])
def test_a_media_file_as_source(name, tmp_path):
    touch(tmp_path, name)
    with pytest.raises(MertoolError, match="is a media file: give the folder it lies in, or a manifest CSV"):
        Manifest.read(tmp_path / name)


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


# ---------------------------------------------------------------- digests


def test_the_digest_is_of_what_training_depends_on():
    one, other = (
        Manifest((Clip(clip="c0", path=Path("x.mp4"), label=label, split="train"),), Path("clips.csv"))
        for label in ("sad", "happy")
    )
    moved = Manifest((Clip(clip="c0", path=Path("elsewhere.mp4"), label="sad", split="train"),), Path("other.csv"))
    assert one.digest() == moved.digest() != other.digest()


def test_the_audio_has_the_digest_of_its_own_file(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "a.wav").write_bytes(b"sound")
    clip = Clip(clip="a", path=tmp_path / "a.mp4", audio=tmp_path / "a.wav")
    assert clip.digest("audio") == Clip(clip="b", path=tmp_path / "a.wav").digest() != clip.digest("video")


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


# ---------------------------------------------------------------- numbers


def test_numbers_are_read_by_the_header_and_written_again(tmp_path):
    manifest = read(tmp_path, "clip,path,sentiment,split,valence\na,a.wav,-1.2,,0\nb,b.wav,,test,4.5\n")
    assert [clip.numbers for clip in manifest.clips] == [{"valence": 0.0, "sentiment": -1.2}, {"valence": 4.5}]
    assert manifest.training_numbers("valence") == {"a": 0.0}
    assert manifest.known_numbers("valence") == {"a": 0.0, "b": 4.5}
    manifest.write(tmp_path / "again.csv")
    header = (tmp_path / "again.csv").read_text().splitlines()[0]
    assert header == "clip,path,label,text,speaker,split,start,end,audio,gender,valence,sentiment"
    assert Manifest.read(tmp_path / "again.csv").clips == manifest.clips


def test_cells_that_are_no_number_are_told_at_once(tmp_path):
    with pytest.raises(MertoolError) as caught:
        read(tmp_path, "clip,path,sentiment,arousal\na,a.wav,3.5,1\nb,b.wav,1,nan\nc,c.wav,much,inf\n")
    message = str(caught.value)
    assert "row 2: sentiment '3.5' is not a number from -3 to 3" in message
    for fault in ("row 3: arousal 'nan'", "row 4: arousal 'inf'", "row 4: sentiment 'much'"):
        assert fault in message


def test_numbers_are_in_the_digest(tmp_path):
    without = read(tmp_path, "clip,path\na,a.wav\n").digest()
    digests = {read(tmp_path, f"clip,path,valence\na,a.wav,{value}\n").digest() for value in ("", "1", "2", "1.0")}
    assert without in digests
    assert len(digests) == 3
