"""MERTools' label files and CSV forms, and files that want to run code."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.interop.mertools import read_labels, read_transcripts


def npz(path: Path, **corpora) -> Path:
    """As MERTools writes them: each corpus a 0-d object array with a pickled dict."""
    np.savez_compressed(path, **{name: np.array(value, dtype=object) for name, value in corpora.items()})
    return path


def npz_of_pickle(path: Path, data: bytes) -> Path:
    """A file whose pickle is `data`, in the place of a dict."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_corpus.npy", content.getvalue() + data)
    return path


def write_text(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_labels_of_the_training_corpus_only(tmp_path):
    path = npz(
        tmp_path / "label-6way.npz",
        train_corpus={"sample_1": {"emo": "happy"}, "sample_2": {"emo": "worried", "val": -10.0}},
        test1_corpus={"sample_3": {"emo": "neutral"}},
        test2_corpus={"sample_4": {"emo": "neutral"}},
    )
    assert read_labels(path) == ({"sample_1": "happy", "sample_2": "worried"}, {})


def test_numpy_values_inside_the_dict(tmp_path):
    entry = {"emo": np.str_("sad"), "val": np.float64(0.5), "vector": np.arange(3.0)}
    path = npz(tmp_path / "l.npz", train_corpus={np.str_("a"): entry})
    assert read_labels(path)[0] == {"a": "sad"}


def test_labels_that_are_numbers(tmp_path):
    path = npz(tmp_path / "l.npz", whole_corpus={"a": {"emo": 3}, "b": {"emo": np.int64(0)}})
    assert read_labels(path)[0] == {"a": "3", "b": "0"}


def test_a_file_without_a_training_corpus(tmp_path):
    with pytest.raises(MertoolError, match="holds none of train_corpus, whole_corpus"):
        read_labels(npz(tmp_path / "l.npz", test1_corpus={"a": {"emo": "neutral"}}))


class Malice:
    """Its pickle calls a function with a command."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, f"{os.system.__module__}.system"), (eval, "builtins.eval"), (getattr, "builtins.getattr")],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_is_refused(function, name, protocol, tmp_path):
    trace = tmp_path / "it ran"
    command = f"touch '{trace}'" if function is os.system else f"open({str(trace)!r}, 'w')"
    arguments = (command,) if function is not getattr else (command, "upper")
    path = npz_of_pickle(tmp_path / "l.npz", pickle.dumps({"a": Malice(function, *arguments)}, protocol))
    assert pickle.loads(pickle.dumps(1)) == 1  # the pickle module itself is unchanged
    with pytest.raises(
        MertoolError, match=f"is not a label file of MERTools .*it wants .*{name.split('.')[1]}.*refused"
    ):
        read_labels(path)
    assert not trace.exists()


def test_the_same_pickle_runs_code_in_numpy(tmp_path):
    """The test above means something only if the pickle would have run."""
    trace = tmp_path / "it ran"
    path = npz_of_pickle(tmp_path / "l.npz", pickle.dumps({"a": Malice(os.system, f"touch '{trace}'")}))
    with np.load(path, allow_pickle=True) as archive:
        archive["train_corpus"]
    assert trace.exists()


def broken_zip(path: Path) -> Path:
    return write_text(path, "PK, but no archive")


def broken_member(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_corpus.npy", b"no npy at all")
    return path


def flipped_bytes(path: Path) -> Path:
    npz(path, train_corpus={f"sample_{n}": {"emo": "happy"} for n in range(200)})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(b ^ 0xFF for b in content[middle : middle + 40])
    path.write_bytes(content)
    return path


BROKEN = {
    "no archive": broken_zip,
    "no npy inside": broken_member,
    "flipped bytes": flipped_bytes,
    "a list": lambda path: npz(path, train_corpus=None),
    "entries without emo": lambda path: npz(path, train_corpus={"a": {"emotion": "sad"}}),
    "entries that are words": lambda path: npz(path, train_corpus={"a": "sad"}),
    "numbers": lambda path: np.savez(path, train_corpus=np.arange(3)) or path,
    "an empty pickle": lambda path: npz_of_pickle(path, b""),
    "half a pickle": lambda path: npz_of_pickle(path, pickle.dumps({"a": {"emo": "sad"}})[:-5]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_label_file_is_refused(kind, tmp_path):
    path = BROKEN[kind](tmp_path / "l.npz")
    with pytest.raises(MertoolError, match=r"l\.npz is not a label file of MERTools"):
        read_labels(path)


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    "text",
    [
        "name,discrete,valence\na,happy,1.5\nb,sad,-2\n",
        "name,discrete\na,happy\nb,sad\n",
        "clip,label\na.mp4,happy\nb.wav,sad\n",
        "Filename, Emotion \n a.MP4 , happy\nb,sad\n",
    ],
)
def test_labels_of_the_csv_forms(text, tmp_path):
    assert read_labels(write_text(tmp_path / "l.csv", text)) == ({"a": "happy", "b": "sad"}, {})


def test_splits_come_with_the_labels_and_empty_labels_do_not(tmp_path):
    path = write_text(tmp_path / "l.csv", "clip,label,split\na,happy,train\nb,,unlabelled\nc,sad,\n")
    assert read_labels(path) == ({"a": "happy", "c": "sad"}, {"a": "train", "b": "unlabelled"})


@pytest.mark.parametrize(
    "text",
    ["name,chinese,english\na,我很好,I am fine\nb,,\n", "name,chinese\na, 我很好 \n", "clip,text\na.mp4,我很好\n"],
)
def test_transcripts_of_the_csv_forms(text, tmp_path):
    assert read_transcripts(write_text(tmp_path / "t.csv", text, "utf-8-sig")) == {"a": "我很好"}


def test_a_dot_inside_a_name_stays(tmp_path):
    assert read_labels(write_text(tmp_path / "l.csv", "name,label\na.b,sad\nv1.2.mp4,sad\n"))[0] == {
        "a.b": "sad",
        "v1.2": "sad",
    }


def test_a_short_row_is_no_traceback(tmp_path):
    path = write_text(tmp_path / "l.csv", "name,label\na,happy\nb\n")
    try:
        assert read_labels(path)[0] == {"a": "happy"}
    except MertoolError as error:
        assert "l.csv" in str(error)


def test_columns_that_are_not_there(tmp_path):
    with pytest.raises(MertoolError, match="has no label column: it has name, feeling; valid: label, discrete"):
        read_labels(write_text(tmp_path / "l.csv", "name,feeling\na,happy\n"))
    with pytest.raises(MertoolError, match="has no clip name column: it has who, label; valid: clip, name"):
        read_labels(write_text(tmp_path / "l.csv", "who,label\na,happy\n"))
    with pytest.raises(MertoolError, match="has no text column"):
        read_transcripts(write_text(tmp_path / "l.csv", "name,label\na,happy\n"))


def test_an_empty_file(tmp_path):
    with pytest.raises(MertoolError, match="has no label column: it has none"):
        read_labels(write_text(tmp_path / "l.csv", ""))


def test_a_file_in_another_encoding(tmp_path):
    with pytest.raises(MertoolError, match="is not a CSV file in UTF-8"):
        read_transcripts(write_text(tmp_path / "t.csv", "name,chinese\na,我很好\n", "gb18030"))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(MertoolError, match=r"labels file .*l\.npz does not exist"):
        read_labels(tmp_path / "l.npz")
    with pytest.raises(MertoolError, match=r"transcripts file .*t\.csv does not exist"):
        read_transcripts(tmp_path / "t.csv")
