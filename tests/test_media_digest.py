"""Digests of media: of the whole file, which is read again only if its size or a time of change is another one."""

import os
import shutil

import pytest

from mertool import media_digest as module
from mertool.manifest import Clip
from mertool.media_digest import clip_signature, digest_of_signature, file_stamp, has_signature, media_digest

SIZE = 3 << 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def reads(monkeypatch):
    """Paths of the files whose content is read."""
    paths = []
    real = module._content_digest
    monkeypatch.setattr(module, "_content_digest", lambda path: paths.append(path) or real(path))
    return paths


@pytest.fixture
def settled(monkeypatch):
    """As if all files were written long ago."""
    monkeypatch.setattr(module, "SETTLED_NANOSECONDS", 0)


@pytest.mark.parametrize("position", [0, 70_000, SIZE // 3, SIZE // 2 + 40_000, SIZE - 1])
def test_an_edit_anywhere_is_noticed(position, file):
    before, signature = media_digest(file), clip_signature(file, None, None)
    status = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))
    # As an editor does that keeps the time of modification.
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert media_digest(file) != before
    assert not has_signature(signature, file, start=None, end=None)


def test_an_unchanged_file_is_not_read_again(file, reads, settled):
    signature = clip_signature(file, None, None)
    assert len(reads) == 1
    assert has_signature(signature, file, start=None, end=None)
    assert len(reads) == 1


def test_a_file_that_was_written_just_now_is_read_again(file, reads):
    """A second change within the resolution of the file system's clock has the same time."""
    signature = clip_signature(file, None, None)
    assert signature.endswith(" ")
    assert has_signature(signature, file, start=None, end=None)
    assert len(reads) == 2


def test_a_copy_has_the_same_digest(file, tmp_path, settled):
    signature = clip_signature(file, 1.0, 2.5)
    copy = shutil.copy(file, tmp_path / "copy.mp4")
    assert clip_signature(copy, 1.0, 2.5) != signature
    assert digest_of_signature(clip_signature(copy, 1.0, 2.5)) == digest_of_signature(signature)
    assert has_signature(signature, copy, start=1.0, end=2.5)
    assert not has_signature(signature, copy, start=1.0, end=2.0)


@pytest.mark.parametrize("section", [(None, None), (0.0, 1.0), (None, 2.0)])
def test_the_section_of_a_clip_counts(section, file):
    signature = clip_signature(file, 1.0, None)
    assert has_signature(signature, file, start=1.0, end=None)
    assert not has_signature(signature, file, start=section[0], end=section[1])


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match=r"(regular|No such) file"):
            file_stamp(path)
        assert not has_signature("a 1-2-3", path, start=None, end=None)


def test_a_clip_without_a_file_is_unchanged_as_long_as_it_has_none(file):
    clip = Clip(clip="a", text="Well.")
    assert clip.is_unchanged("", "audio")
    assert not clip.is_unchanged(clip_signature(file, None, None), "audio")


def test_an_empty_file_has_a_digest(tmp_path):
    (tmp_path / "empty").touch()
    assert len(media_digest(tmp_path / "empty")) == 32
