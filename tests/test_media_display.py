"""Pictures are as a player shows them: turned and mirrored by the display matrix, with square pixels."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mertool.errors import ClipError
from mertool.media import read_frames
from mertool.media.display import apply_display_matrix, square_pixel_size

CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "cases"
WIDTH, HEIGHT, FPS = 96, 64, 15
ONE = 1 << 16
# The eight ways to lay a rectangle on the axes: (a, b, c, d) of the matrix.
TURNS = [
    (1, 0, 0, 1),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (-1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, 1, 0),
    (0, 1, -1, 0),
    (0, -1, -1, 0),
]


def matrix_of(a: float, b: float, c: float, d: float) -> np.ndarray:
    return np.array([a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 5 * ONE, -7 * ONE, 1 << 30]).astype(np.int32)


def colours() -> np.ndarray:
    """Return a picture whose four quarters have different colours."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[: HEIGHT // 2, : WIDTH // 2] = (220, 30, 30)
    picture[: HEIGHT // 2, WIDTH // 2 :] = (30, 220, 30)
    picture[HEIGHT // 2 :, : WIDTH // 2] = (30, 30, 220)
    picture[HEIGHT // 2 :, WIDTH // 2 :] = (220, 220, 30)
    return picture


def moved(image: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """Return the image with each pixel moved to where the definition of the matrix puts its centre."""
    a, b, c, d = turn
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    across = a * (columns + 0.5) + c * (rows + 0.5)
    down = b * (columns + 0.5) + d * (rows + 0.5)
    across, down = (np.floor(place - place.min() + 0.5).astype(int) for place in (across, down))
    result = np.zeros((down.max() + 1, across.max() + 1, 3), np.uint8)
    result[down, across] = image
    return result


@pytest.mark.parametrize("turn", TURNS)
def test_a_display_matrix_moves_each_pixel_as_it_is_defined(turn):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    np.testing.assert_array_equal(apply_display_matrix(image, matrix_of(*turn)), moved(image, turn))


def test_the_scale_of_a_display_matrix_does_not_matter():
    image = colours()
    turned = apply_display_matrix(image, matrix_of(0, 0.5, -3, 0))
    np.testing.assert_array_equal(turned, apply_display_matrix(image, matrix_of(0, 1, -1, 0)))


def test_half_a_degree_is_none():
    image, angle = colours(), np.radians(0.5)
    tilted = matrix_of(np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle))
    np.testing.assert_array_equal(apply_display_matrix(image, tilted), image)


@pytest.mark.parametrize("degrees", [30, 45, 120, -60])
def test_any_angle_is_turned_about_the_middle(degrees):
    """A line from the middle to the right ends up at the angle, clockwise."""
    image, angle = np.zeros((101, 101, 3), np.uint8), np.radians(degrees)
    image[48:53, 50:90] = 255
    turned = apply_display_matrix(image, matrix_of(np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)))
    rows, columns = np.nonzero(turned[..., 0] > 127)
    middle = np.array(turned.shape[:2]) / 2
    direction = np.arctan2(rows.mean() - middle[0], columns.mean() - middle[1])
    assert np.degrees(direction) == pytest.approx(degrees, abs=3)


def test_a_damaged_matrix_changes_nothing():
    image = colours()
    np.testing.assert_array_equal(apply_display_matrix(image, np.zeros(9, np.int32)), image)


@pytest.mark.parametrize(
    ("pixel_aspect", "size"), [(Fraction(1), (160, 240)), (Fraction(2), (320, 240)), (Fraction(8, 9), (160, 270))]
)
def test_pixels_become_square_by_enlarging(pixel_aspect, size):
    assert square_pixel_size(160, 240, pixel_aspect) == size


def test_an_absurd_pixel_aspect_is_too_large():
    with pytest.raises(ClipError, match="larger than 8K") as caught:
        square_pixel_size(640, 480, Fraction(1, 100_000))
    assert caught.value.reason == "too_large"


# ---------------------------------------------------------------- files


def write(path: Path, picture: np.ndarray, *, codec: str = "libx264", matrix=None, pixel_aspect=None) -> Path:
    """Write half a second of a still picture whose container states a display matrix or a pixel aspect."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=FPS if codec != "mpeg2video" else 25)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if matrix is not None:
            stream.set_display_matrix(matrix.tolist())
        for _ in range(8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def shown(path: Path) -> np.ndarray:
    return next(iter(read_frames(path, 4, 256)))[1]


@pytest.mark.parametrize("turn", TURNS)
def test_an_mp4_is_shown_by_its_display_matrix(turn, tmp_path):
    picture = shown(write(tmp_path / "a.mp4", colours(), matrix=matrix_of(*turn)))
    expected = moved(colours(), turn)
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("turn", [turn for turn in TURNS if turn[0] * turn[3] - turn[1] * turn[2] > 0])
def test_a_matroska_file_is_shown_by_its_rotation(turn, tmp_path):
    """It states a rotation and no mirroring."""
    picture = shown(write(tmp_path / "a.mkv", colours(), matrix=matrix_of(*turn)))
    expected = moved(colours(), turn)
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() < 6


@pytest.mark.parametrize(
    ("name", "codec", "pixel_aspect", "size"),
    [
        ("a.mp4", "libx264", Fraction(2), (192, 64)),
        ("a.mkv", "libx264", Fraction(1, 2), (96, 128)),
        ("a.mov", "mpeg4", Fraction(4, 3), (128, 64)),
        ("a.avi", "mpeg4", Fraction(4, 3), (128, 64)),
        ("a.ts", "libx264", Fraction(4, 3), (128, 64)),
        ("a.mpg", "mpeg2video", Fraction(32, 27), (114, 64)),
    ],
)
def test_anamorphic_pictures_are_not_squeezed(name, codec, pixel_aspect, size, tmp_path):
    picture = shown(write(tmp_path / name, colours(), codec=codec, pixel_aspect=pixel_aspect))
    assert (picture.shape[1], picture.shape[0]) == pytest.approx(size, abs=1)
    quarters = [picture[row, column] for row in (8, -8) for column in (8, -8)]
    expected = [colours()[row, column] for row in (8, -8) for column in (8, -8)]
    assert np.abs(np.array(quarters).astype(int) - expected).max() < 30


def test_turning_and_pixel_aspect_go_together(tmp_path):
    """The pixels are squared before the picture is turned."""
    path = write(tmp_path / "a.mp4", colours(), matrix=matrix_of(0, 1, -1, 0), pixel_aspect=Fraction(2))
    assert shown(path).shape == (192, 64, 3)


def test_the_pixel_aspect_may_change_within_a_broadcast(tmp_path):
    """Television changes between 4:3 and 16:9 in the same stream, and at the same number of pixels."""
    parts = [
        write(tmp_path / f"{number}.m2v", colours(), codec="mpeg2video", pixel_aspect=aspect)
        for number, aspect in enumerate((Fraction(8, 9), Fraction(32, 27)))
    ]
    with av.open(str(tmp_path / "a.ts"), "w") as out, av.open(str(parts[0])) as first:
        stream = out.add_stream_from_template(first.streams.video[0])
        for number, path in enumerate(parts):
            with av.open(str(path)) as source:
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream, shift = stream, round(number * 8 / 25 / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        out.mux(packet)
    sizes = [picture.shape[:2] for _, picture in read_frames(tmp_path / "a.ts", 25, 256)]
    assert sizes[0] == (72, 96)
    assert sizes[-1] == (64, 114)


needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/data/cases")


@needs_cases
@pytest.mark.parametrize("name", ["phone.mp4", "phone.mkv", "mirror.mp4", "squeezed2.mp4"])
def test_a_turned_mirrored_or_squeezed_face_is_the_plain_one(name):
    from mertool.extraction.decoding import decode_faces

    plain = [picture for _, picture in read_frames(CASES / "plain.mp4", 4, 256)]
    for picture, expected in zip((picture for _, picture in read_frames(CASES / name, 4, 256)), plain, strict=True):
        assert np.abs(picture.astype(int) - expected).mean() < 4
    assert decode_faces(CASES / name, None, None, fps=4.0, max_frames=256).content.shape == (6, 224, 224, 3)
