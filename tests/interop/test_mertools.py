"""MERTools' label-6way.npz: corpora, splits, placeholders, and files that want to run code."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mertool.errors import MertoolError
from mertool.interop.labels import read_labels


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


def rows(path: Path) -> dict[str, tuple[str, str | None]]:
    """Label and split by clip."""
    return {row.name: (row.label, row.split) for row in read_labels(path).rows}


def test_placeholders_of_test_clips_are_left_out(tmp_path):
    path = npz(
        tmp_path / "label-6way.npz",
        train_corpus={"sample_1": {"emo": "happy"}, "sample_2": {"emo": "worried", "val": -10.0}},
        test1_corpus={"sample_3": {"emo": "neutral"}, "sample_5": {"emo": "neutral"}},
        test2_corpus={"sample_4": {"emo": "neutral"}},
    )
    assert rows(path) == {"sample_1": ("happy", "train"), "sample_2": ("worried", "train")}
    notes = read_labels(path).notes
    assert len(notes) == 2
    assert "test1_corpus" in notes[0]
    assert "placeholder 'neutral'" in notes[0]


def test_true_labels_of_test_corpora_are_read(tmp_path):
    """As in MERBench's file of MER2023."""
    path = npz(
        tmp_path / "label-6way.npz",
        train_corpus={"a": {"emo": "happy", "val": 1.0}, "b": {"emo": "sad", "val": -1.0}},
        test1_corpus={"c": {"emo": "neutral"}, "d": {"emo": "sad"}},
        test3_corpus={"e": {"emo": "angry"}},
    )
    expected = {"c": ("neutral", "test"), "d": ("sad", "test"), "e": ("angry", "test")}
    assert rows(path) == {"a": ("happy", "train"), "b": ("sad", "train"), **expected}


def test_validation_and_test_of_meld_have_their_splits(tmp_path):
    path = npz(
        tmp_path / "l.npz",
        train_corpus={"a": {"emo": 0}, "b": {"emo": 4}},
        val_corpus={"c": {"emo": 1}},
        test_corpus={"d": {"emo": 0}, "e": {"emo": 0}},
    )
    assert rows(path) == {
        "a": ("0", "train"),
        "b": ("4", "train"),
        "c": ("1", "dev"),
        "d": ("0", "test"),
        "e": ("0", "test"),
    }


def test_a_corpus_whose_emotion_is_constant_is_refused(tmp_path):
    """As MOSI, MOSEI and SIMS, whose target is val."""
    entry = {n: {"emo": 0, "val": n / 10} for n in range(5)}
    path = npz(tmp_path / "l.npz", train_corpus=entry, val_corpus=entry, test_corpus=entry)
    with pytest.raises(MertoolError, match=r"all 5 clips of train_corpus have the emo '0', .* the target is val"):
        read_labels(path)


def test_numpy_values_inside_the_dict(tmp_path):
    entry = {"emo": np.str_("sad"), "val": np.float64(0.5), "vector": np.arange(3.0)}
    path = npz(tmp_path / "l.npz", train_corpus={np.str_("a"): entry})
    assert rows(path) == {"a": ("sad", "train")}


def test_labels_that_are_numbers(tmp_path):
    path = npz(tmp_path / "l.npz", whole_corpus={"a": {"emo": 3}, "b": {"emo": np.int64(0)}})
    assert rows(path) == {"a": ("3", "train"), "b": ("0", "train")}


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


# ---------------------------------------------------------------- files that need more memory than labels do


def test_a_member_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train_corpus.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(1 << 20))
    with pytest.raises(MertoolError, match="train_corpus unpacks to 314,572,800 bytes, at most 268,435,456 are read"):
        read_labels(tmp_path / "bomb.npz")


def test_an_array_that_declares_terabytes_is_refused(tmp_path):
    class Huge:
        def __reduce__(self):
            return np.core.multiarray._reconstruct, (np.ndarray, (10**13,), b"b")

    path = npz_of_pickle(tmp_path / "huge.npz", pickle.dumps({"a": {"emo": Huge()}}))
    with pytest.raises(MertoolError, match="is not a label file of MERTools") as caught:
        read_labels(path)
    assert "\n" not in str(caught.value)


def test_a_label_that_holds_itself_many_times_is_refused(tmp_path):
    label: tuple = ()
    for _ in range(60):  # its text would have 2 to the power of 60 characters
        label = (label, label)
    path = npz_of_pickle(tmp_path / "nested.npz", pickle.dumps({"a": {"emo": label}}))
    with pytest.raises(MertoolError, match="an emo of type tuple"):
        read_labels(path)


def test_a_pipe_in_place_of_an_npz_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "label.npz")
    with pytest.raises(MertoolError, match="not a regular file"):
        read_labels(tmp_path / "label.npz")
