"""Faces: which track is the main face of a clip, how it is cropped, and detection by MTCNN in a demo clip."""

import numpy as np
import pytest

from mertool import faces
from mertool.errors import ClipError
from mertool.faces import CROP_SIDE, FaceTrack, find_face, overlap, resize, square_crop
from mertool.media import read_frames


def box(x: float, y: float, side: float) -> np.ndarray:
    return np.array([x, y, x + side, y + side], np.float64)


def colour(number: int) -> tuple[int, int, int]:
    return (40 * number, 0, 255 - 40 * number)


@pytest.fixture
def scene(monkeypatch):
    """A function that passes a list of frames, each a list of (person, box, probability), to `find_face`.

    A person is a square of a colour of its own; detection is replaced by the boxes of the list.
    """

    def track_scene(script: list) -> FaceTrack:
        pictures = []
        for people in script:
            frame = np.full((240, 320, 3), 128, np.uint8)
            for person, position, _ in people:
                x, y, right, bottom = position.astype(int)
                frame[max(0, y) : bottom, max(0, x) : right] = colour(person)
            pictures.append(frame)
        people_of = {id(frame): people for frame, people in zip(pictures, script, strict=True)}

        def detect(frames: list[np.ndarray]) -> list[list[tuple[np.ndarray, float]]]:
            return [
                [
                    (position, probability)
                    for _, position, probability in sorted(
                        people_of[id(frame)], key=lambda item: -np.prod(item[1][2:] - item[1][:2])
                    )
                ]
                for frame in frames
            ]

        monkeypatch.setattr(faces, "_detect", detect)
        return find_face((number / 4, frame) for number, frame in enumerate(pictures))

    return track_scene


def people_in(track: FaceTrack) -> list[int]:
    """Return the person in the middle of each crop."""
    return [round(int(crop[CROP_SIDE // 2, CROP_SIDE // 2, 0]) / 40) for crop in track.crops]


def test_the_large_face_wins_over_the_small_one(scene):
    track = scene([[(1, box(20, 60, 50), 1.0), (2, box(150, 60, 100), 1.0)]] * 4)
    assert people_in(track) == [2, 2, 2, 2]


def test_the_long_face_wins_over_the_larger_one_that_passes(scene):
    passing = [(2, box(150, 60, 100), 1.0)]
    track = scene([[(1, box(20, 60, 70), 1.0)] + (passing if number == 3 else []) for number in range(8)])
    assert people_in(track) == [1] * 8
    assert track.share == 1


def test_an_unsure_face_counts_less(scene):
    track = scene([[(1, box(20, 60, 90), 0.95), (2, box(150, 60, 92), 0.9)]] * 3)
    assert people_in(track) == [1, 1, 1]


def test_a_face_that_moves_stays_one_track(scene):
    track = scene([[(1, box(10 + 20 * n, 60, 80), 1.0), (2, box(10, 160, 70), 1.0)] for n in range(9)])
    assert people_in(track) == [1] * 9


def test_a_face_that_jumps_is_another_track(scene):
    track = scene([[(1, box(10, 60, 80), 1.0)]] * 2 + [[(2, box(200, 60, 80), 1.0)]] * 3)
    assert people_in(track) == [2, 2, 2]
    assert (track.frames_seen, track.share) == (5, 0.6)


def test_a_face_that_comes_back_continues_its_track(scene):
    visible = [(1, box(100, 60, 80), 1.0)]
    track = scene([visible, [], [], visible, visible])
    assert people_in(track) == [1, 1, 1]
    assert (track.frames_seen, track.share, track.seconds) == (5, 0.6, 1.0)


def test_two_faces_of_one_frame_are_never_one_track(scene):
    track = scene([[(1, box(100, 60, 100), 1.0), (2, box(110, 60, 90), 1.0)]] * 4)
    assert len(track.crops) == 4


def test_no_face_in_any_frame(scene):
    with pytest.raises(ClipError, match="no face was found in 3 sampled frames") as caught:
        scene([[], [], []])
    assert caught.value.reason == "no_face"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (box(0, 0, 10), box(0, 0, 10), 1.0),
        (box(0, 0, 10), box(5, 0, 10), 50 / 150),
        (box(0, 0, 10), box(0, 0, 5), 0.25),
        (box(0, 0, 10), box(10, 0, 10), 0.0),
        (box(0, 0, 10), box(30, 30, 10), 0.0),
    ],
)
def test_overlap(a, b, expected):
    assert overlap(a, b) == overlap(b, a) == pytest.approx(expected)


def test_a_crop_is_square_with_the_margin_around_the_middle():
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[50:150, 100:180] = 255  # 100 high, 80 wide
    crop = square_crop(frame, np.array([100.0, 50.0, 180.0, 150.0]))
    assert (crop.shape, crop.dtype) == ((CROP_SIDE, CROP_SIDE, 3), np.uint8)
    white = crop[..., 0] > 127
    assert white.any(axis=1).sum() == pytest.approx(CROP_SIDE / 1.3, abs=2)
    assert white.any(axis=0).sum() == pytest.approx(0.8 * CROP_SIDE / 1.3, abs=2)
    rows, columns = np.nonzero(white)
    assert rows.mean() == pytest.approx((CROP_SIDE - 1) / 2, abs=1)
    assert columns.mean() == pytest.approx((CROP_SIDE - 1) / 2, abs=1)


@pytest.mark.parametrize("position", [box(-30, -30, 80), box(280, 200, 80), box(-50, -50, 500), box(5.4, 3.2, 0.3)])
def test_a_crop_beyond_the_edge_repeats_it(position):
    frame = np.full((240, 320, 3), 77, np.uint8)
    crop = square_crop(frame, position)
    assert crop.shape == (CROP_SIDE, CROP_SIDE, 3)
    assert np.all(crop == 77)


def test_resizing_keeps_bytes_and_the_mean():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 500, 3)).astype(np.uint8)
    small = resize(image, 30, 50)
    assert (small.shape, small.dtype) == ((30, 50, 3), np.uint8)
    assert small.mean() == pytest.approx(image.mean(), abs=1)
    assert small.std() < image.std() / 3  # antialiased: noise averages out
    np.testing.assert_array_equal(resize(image, 300, 500), image)


def test_mtcnn_finds_the_face_of_a_demo_clip_in_nearly_all_frames(demo):
    track = find_face(read_frames(demo / "clips" / "spk01_001.mp4", 2, 256))
    assert track.frames_seen >= 4
    assert track.share >= 0.75
    assert track.crops.shape == (len(track.crops), CROP_SIDE, CROP_SIDE, 3)
    assert track.crops.std() > 20


def test_mtcnn_finds_none_in_the_demo_clip_without_one(demo):
    with pytest.raises(ClipError) as caught:
        find_face(read_frames(demo / "clips" / "spk01_014.mp4", 2, 256))
    assert caught.value.reason == "no_face"


def test_a_detect_in_batches_box_is_in_pixels_of_the_frame_whatever_its_size(demo):
    _, frame = next(iter(read_frames(demo / "clips" / "spk01_001.mp4", 1, 1)))
    ((position, probability), *_), *_ = faces._detect([frame])
    large = resize(frame, 4 * frame.shape[0], 4 * frame.shape[1])
    ((large_position, _), *_), *_ = faces._detect([large])
    assert probability >= 0.9
    assert overlap(position, large_position / 4) > 0.75


@pytest.mark.parametrize("shape", [(10, 10, 3), (39, 900, 3), (64, 64, 3)])
def test_small_and_empty_frames_have_no_face(shape):
    assert faces._detect([np.zeros(shape, np.uint8)] * 2) == [[], []]


def test_frames_detect_in_batches_together_have_the_faces_they_have_alone(demo):
    """Also if some of them have none, where batches of MTCNN itself fail."""
    frames_seen = [frame for _, frame in read_frames(demo / "clips" / "spk01_001.mp4", 2, 4)]
    empty = np.zeros_like(frames_seen[0])
    frames = [frames_seen[0], empty, *frames_seen[1:], empty]
    together = faces._detect(frames)
    assert [len(detections) for detections in together] == [1 if frame.any() else 0 for frame in frames]
    for detections, frame in zip(together, frames, strict=True):
        for (position, probability), single in zip(detections, faces._detect([frame])[0], strict=True):
            np.testing.assert_allclose(position, single[0], atol=0.01)
            assert probability == pytest.approx(single[1], abs=1e-4)


def test_frames_of_different_sizes_are_detect_in_batches_apart(demo):
    frames = list(read_frames(demo / "clips" / "spk01_001.mp4", 1, 2))
    moment, frame = frames[0]
    mixed = [(moment, frame), (moment, frame[:-10]), (moment, frame)]
    assert [len(detections) for _, _, detections in faces._detect_in_batches(mixed)] == [1, 1, 1]
