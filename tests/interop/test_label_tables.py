"""Label and transcript tables: columns of several toolkits, delimiters, encodings, splits, times."""

from pathlib import Path

import pytest

from mertool.errors import MertoolError
from mertool.interop.columns import parse_seconds
from mertool.interop.labels import read_labels, read_transcripts
from mertool.interop.submission import read_candidates


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def labels(path: Path) -> dict[str, str]:
    return {name: row.label for name, row in read_labels(path).labelled().items()}


@pytest.mark.parametrize(
    "text",
    [
        "name,discrete,valence\na,happy,1.5\nb,sad,-2\n",
        "name,discrete\na,happy\nb,sad\n",
        "clip;label\na;happy\nb;sad\n",
        "clip\tlabel\r\na\thappy\r\nb\tsad\r\n",
        "sep=;\nclip;label\na;happy\nb;sad\n",
        "Filename, Emotion \n a , happy\nb,sad\n",
        '"file","emotion","comment"\n"a","happy","one, two; three"\n"b","sad",""\n',
    ],
)
def test_labels_of_the_csv_forms(text, tmp_path):
    assert labels(write(tmp_path / "l.csv", text)) == {"a": "happy", "b": "sad"}


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text",
    [
        *("name,discrete\n样本一,高兴\n样本二,中性\n", "name,discrete\na,开心\nb,愤怒\n", "name,label\na,担心\n"),
        "文件名,情感\n测试/开.mp4,恐惧\n张三/录音1.wav,难过\n",
    ],
)
def test_the_encoding_of_a_table_is_detected_and_told(encoding, text, tmp_path):
    path = write(tmp_path / "l.csv", text, encoding)
    expected = dict(line.split(",") for line in text.splitlines()[1:])
    assert labels(path) == expected
    (note,) = read_labels(path).notes
    named = "GB18030" if encoding == "gbk" else encoding.upper()
    assert note == f"{path} is read as {named}, because it is not in UTF-8"


@pytest.mark.parametrize(
    ("encoding", "word"), [("latin-1", "Müller"), ("cp1252", "naïve – café"), ("big5", "我今天真的很高興你呢")]
)
def test_other_encodings_are_not_taken_for_chinese(encoding, word, tmp_path):
    path = write(tmp_path / "l.csv", f"name,label,speaker\na,sad,{word}\nb,happy,{word}\n", encoding)
    assert [row.speaker for row in read_labels(path).rows] == [word, word]


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    path = write(tmp_path / "l.csv", "name,label\na,sad\n", "utf-8-sig")
    assert labels(path) == {"a": "sad"}
    assert read_labels(path).notes == ()


@pytest.mark.parametrize("magic", [b"PK\x03\x04\x14\x00", b"\xd0\xcf\x11\xe0\xa1\xb1"])
def test_a_spreadsheet_is_refused_with_the_way_out(magic, tmp_path):
    (tmp_path / "l.xlsx").write_bytes(magic + bytes(100))
    with pytest.raises(MertoolError, match=r"is a spreadsheet .*: save it as CSV UTF-8"):
        read_labels(tmp_path / "l.xlsx")


def test_a_table_of_nkululeko(tmp_path):
    text = (
        "file,emotion,gender,speaker,split,language\n"
        "EMOVO/f3/neu.wav,neutral,female,f3,train,italian\n"
        "/data/EMOVO/m1/rab.wav,anger,male,m1,dev,italian\n"
        "EMOVO/m1/tri.wav,sadness,male,m1,test,italian\n"
    )
    annotations = read_labels(write(tmp_path / "l.csv", text))
    assert [(r.name, r.label, r.gender, r.speaker, r.split) for r in annotations.rows] == [
        ("EMOVO/f3/neu.wav", "neutral", "female", "f3", "train"),
        ("/data/EMOVO/m1/rab.wav", "anger", "male", "m1", "dev"),
        ("EMOVO/m1/tri.wav", "sadness", "male", "m1", "test"),
    ]
    (note,) = annotations.notes
    assert note.endswith("columns of " + str(tmp_path / "l.csv") + " that are not used: language")


@pytest.mark.parametrize(("word", "split"), [("Dev", "dev"), ("valid", "dev"), ("val", "dev"), ("TRAIN", "train")])
def test_names_of_splits(word, split, tmp_path):
    assert read_labels(write(tmp_path / "l.csv", f"name,label,split\na,sad,{word}\n")).rows[0].split == split


def test_faults_of_all_rows_are_reported_at_once(tmp_path):
    text = "name,label,split,start,end\na,sad,tran,,\nb,sad,,soon,\nc,sad,,3,2\n"
    with pytest.raises(MertoolError) as caught:
        read_labels(write(tmp_path / "l.csv", text))
    for words in (
        "row 2: unknown split 'tran': did you mean 'train'?",
        "row 3: start 'soon' is not a number of seconds",
        "row 4: start 3.0 and end 2.0: 0 <= start < end is needed",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", None), ("NaT", None), ("1.5", 1.5), ("0 days 00:00:01.500000", 1.5), ("00:01:02,5", 62.5), ("01:02", 62.0)],
)
def test_times_in_the_forms_of_tables(text, seconds):
    assert parse_seconds(text) == seconds


def test_empty_labels_are_none_and_splits_stay(tmp_path):
    path = write(tmp_path / "l.csv", "clip,label,split\na,happy,train\nb,,unlabelled\nc,sad,\n")
    assert labels(path) == {"a": "happy", "c": "sad"}
    assert [row.split for row in read_labels(path).rows] == ["train", "unlabelled", None]


def test_a_path_beside_a_name_names_the_file(tmp_path):
    row = read_labels(write(tmp_path / "l.csv", "clip,path,label\nutterance,x/a.mp4,sad\n")).rows[0]
    assert (row.name, row.clip) == ("x/a.mp4", "utterance")


def test_a_short_row_has_empty_cells(tmp_path):
    assert labels(write(tmp_path / "l.csv", "name,label\na,happy\nb\n")) == {"a": "happy"}


def test_a_column_that_is_there_twice(tmp_path):
    with pytest.raises(MertoolError, match="column 'label' stands twice"):
        read_labels(write(tmp_path / "l.csv", "name,label,Label\na,happy,sad\n"))
    assert labels(write(tmp_path / "l.csv", "name,label,note,note\na,happy,,\n")) == {"a": "happy"}


def test_columns_that_are_not_there(tmp_path):
    with pytest.raises(MertoolError, match="has no label column: it has name, feeling; valid: label, discrete"):
        read_labels(write(tmp_path / "l.csv", "name,feeling\na,happy\n"))
    with pytest.raises(MertoolError, match="has no clip name column: it has who, label; valid: clip, name"):
        read_labels(write(tmp_path / "l.csv", "who,label\na,happy\n"))
    with pytest.raises(MertoolError, match="has no text column"):
        read_transcripts(write(tmp_path / "l.csv", "name,label\na,happy\n"))


def test_an_empty_file(tmp_path):
    with pytest.raises(MertoolError, match="has no label column: it has none"):
        read_labels(write(tmp_path / "l.csv", ""))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(MertoolError, match=r"labels file .*l\.npz does not exist: give a CSV"):
        read_labels(tmp_path / "l.npz")
    with pytest.raises(MertoolError, match=r"transcripts file .*t\.csv does not exist"):
        read_transcripts(tmp_path / "t.csv")


# ---------------------------------------------------------------- transcripts


def texts(path: Path, language: str | None = None) -> dict[str, str | None]:
    return {row.name: row.text for row in read_transcripts(path, language).rows}


@pytest.mark.parametrize(
    "text",
    ["name,chinese,english\na,我很好,I am fine\nb,,\n", "name,chinese\na, 我很好 \n", "clip;text\na;我很好\n"],
)
def test_transcripts_of_the_csv_forms(text, tmp_path):
    assert texts(write(tmp_path / "t.csv", text, "utf-8-sig")) == {"a": "我很好"}


def test_the_language_of_transcripts(tmp_path):
    path = write(tmp_path / "t.csv", "name,chinese,english\na,我很好,I am fine\n")
    assert texts(path, "english") == {"a": "I am fine"}
    assert texts(path, "chinese") == {"a": "我很好"}
    assert read_transcripts(path, "english").notes == ()
    (note,) = read_transcripts(path).notes
    assert note == "transcripts are of the column 'chinese'; --language english reads the other one"


def test_a_language_that_the_file_does_not_have(tmp_path):
    with pytest.raises(MertoolError, match="has no column 'english': it has name, chinese; leave out --language"):
        read_transcripts(write(tmp_path / "t.csv", "name,chinese\na,我很好\n"), "english")


def test_a_transcript_of_nan_is_none(tmp_path):
    path = write(tmp_path / "t.csv", "name,chinese\na,NaN\nb,nan\nc,\nd,nanjing\n")
    assert texts(path) == {"d": "nanjing"}


def test_labels_beside_transcripts_are_no_columns_to_tell_of(tmp_path):
    path = write(tmp_path / "t.csv", "clip,path,label,text,speaker,split,audio,age\na,a.mp4,sad,Oh.,s1,train,,30\n")
    (note,) = read_transcripts(path).notes
    assert note.endswith("that are not used: age")
    assert read_transcripts(path).rows[0].label is None


def test_a_transcript_of_a_megabyte(tmp_path):
    assert len(texts(write(tmp_path / "t.csv", f"name,text\na,{'好' * 1_000_000}\n"))["a"]) == 1_000_000


def test_candidates_are_ids(tmp_path):
    path = write(tmp_path / "c.csv", "name\nsample_1\nsample_2.mp4\nv1.2\n")
    assert read_candidates(path) == ["sample_1", "sample_2", "v1.2"]
