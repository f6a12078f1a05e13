"""What is to do: new, changed and curable clips; the rest is cached."""

from dataclasses import replace

import pytest

from mertool.errors import MISSING_MODALITY_REASONS, REASONS, TRANSIENT_REASONS, MertoolError
from mertool.extraction.plan import list_items, pending_items
from mertool.manifest import Clip, Manifest
from mertool.media_digest import clip_signature
from mertool.store import Failure


@pytest.fixture
def manifest(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.wav").write_bytes(name.encode() * 100)
    clips = tuple(Clip(clip=name, path=tmp_path / f"{name}.wav", text=f"text {name}") for name in "abc")
    return Manifest(clips, tmp_path / "clips.csv")


def pending(manifest, modality="audio", done=None, failed=None):
    return [item.clip.clip for item in pending_items(list_items(manifest, modality), done or {}, failed or {})]


def digests(manifest, modality="audio"):
    """Return what a store keeps of each clip."""
    if modality == "text":
        return {item.clip.clip: item.digest for item in list_items(manifest, "text")}
    return {clip.clip: clip_signature(clip.media_path(modality), clip.start, clip.end) for clip in manifest.clips}


def test_everything_is_new_at_first(manifest):
    assert pending(manifest) == ["a", "b", "c"]


def test_what_is_done_is_cached(manifest):
    assert pending(manifest, done=digests(manifest)) == []


def test_a_changed_file_is_done_again(manifest, tmp_path):
    done = digests(manifest)
    content = bytearray((tmp_path / "b.wav").read_bytes())
    content[50] ^= 1  # in the middle, and of the same size
    (tmp_path / "b.wav").write_bytes(content)
    assert pending(manifest, done=done) == ["b"]


def test_a_file_that_was_only_touched_or_copied_is_cached(manifest, tmp_path):
    done = digests(manifest)
    (tmp_path / "b.wav").touch()
    content = (tmp_path / "c.wav").read_bytes()
    (tmp_path / "c.wav").unlink()
    (tmp_path / "c.wav").write_bytes(content)
    assert pending(manifest, done=done) == []


def test_another_part_of_the_file_is_done_again(manifest):
    done = digests(manifest)
    cut = Manifest((replace(manifest.clips[0], end=1.5), *manifest.clips[1:]), manifest.source)
    assert pending(cut, done=done) == ["a"]


def test_another_transcript_matters_to_text_alone(manifest):
    changed = Manifest((replace(manifest.clips[0], text="other"), *manifest.clips[1:]), manifest.source)
    assert pending(changed, done=digests(manifest)) == []
    assert pending(changed, "text", digests(manifest, "text")) == ["a"]


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_only_failures_that_may_heal_are_tried_again(reason, manifest):
    known = digests(manifest)
    failure = Failure(clip="b", digest=known.pop("b"), stage="decode", reason=reason, message="")
    assert pending(manifest, done=known, failed={"b": failure}) == (["b"] if reason in TRANSIENT_REASONS else [])


def test_a_failed_file_that_changed_is_tried_again(manifest):
    known = digests(manifest)
    failure = Failure(clip="b", digest="another digest", stage="decode", reason="unreadable", message="")
    del known["b"]
    assert pending(manifest, done=known, failed={"b": failure}) == ["b"]


def test_a_file_that_came_back_is_tried_again(manifest, tmp_path):
    (tmp_path / "b.wav").unlink()
    failure = Failure(clip="b", digest="", stage="decode", reason="missing_file", message="")
    (tmp_path / "b.wav").write_bytes(b"back")
    known = {name: digest for name, digest in digests(manifest).items() if name != "b"}
    assert pending(manifest, done=known, failed={"b": failure}) == ["b"]


def test_clips_of_text_alone_have_no_media_to_read(tmp_path):
    manifest = Manifest((Clip(clip="a", text="Well."),), tmp_path / "clips.csv")
    assert [item.digest for item in list_items(manifest, "text")] != [""]
    for modality in ("audio", "video", "faces"):
        with pytest.raises(MertoolError, match=r"no clip of .* has a media file: it holds texts alone"):
            list_items(manifest, modality)


def test_the_audio_is_planned_by_the_file_of_the_audio(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"picture")
    (tmp_path / "a.wav").write_bytes(b"sound")
    clip = Clip(clip="a", path=tmp_path / "a.mp4", audio=tmp_path / "a.wav")
    manifest = Manifest((clip,), tmp_path)
    done = {"a": clip_signature(tmp_path / "a.wav", None, None)}
    assert pending(manifest, "audio", done) == []
    assert pending(manifest, "video", done) == ["a"]
    (tmp_path / "a.mp4").unlink()
    assert pending(manifest, "audio", done) == []
    with pytest.raises(MertoolError, match="none of the 1 files"):
        list_items(manifest, "video")


def test_not_one_file_is_an_error_about_paths(tmp_path):
    manifest = Manifest(
        (Clip(clip="a", path=tmp_path / "a.mp4"), Clip(clip="b", path=tmp_path / "b.mp4")), tmp_path / "clips.csv"
    )
    with pytest.raises(MertoolError, match=r"none of the 2 files .* exists .*a\.mp4.* relative to the manifest"):
        pending(manifest)


def test_text_needs_no_files(tmp_path):
    manifest = Manifest((Clip(clip="a", path=tmp_path / "a.mp4", text="wow"),), tmp_path / "clips.csv")
    assert pending(manifest, "text") == ["a"]


def test_absent_modalities_are_no_transient_failures():
    assert not MISSING_MODALITY_REASONS & TRANSIENT_REASONS
