"""From a decoded frame to the picture that a player shows: square pixels, upright, mirrored where the file says so."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from PIL import Image

from mertool.errors import ClipError
from mertool.media.container import MAX_PIXELS

# A display matrix within one degree of quarter turns moves pixels without interpolating between them, as ffmpeg does.
SMALL_SINE = np.sin(np.radians(1))


def to_display(frame: "av.VideoFrame", pixel_aspect: Fraction) -> np.ndarray:
    """Return the RGB picture (H, W, 3) uint8 of a frame as a player shows it.

    pixel_aspect: width of a pixel divided by its height. The narrower side is enlarged, so that no pixel is lost.
    Raises ClipError too_large.
    """
    width, height = square_pixel_size(frame.width, frame.height, pixel_aspect)
    image = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
    side_data: Any = frame.side_data  # its stub says that the keys are text
    matrix = side_data.get(SideDataType.DISPLAYMATRIX)
    return image if matrix is None else apply_display_matrix(image, np.frombuffer(bytes(matrix), np.int32))


def square_pixel_size(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Return the width and height that a picture has with square pixels. Raises ClipError too_large."""
    if pixel_aspect >= 1:
        width = round(width * pixel_aspect)
    else:
        height = round(height / pixel_aspect)
    check_size(width, height)
    return width, height


def check_size(width: int, height: int) -> None:
    """Raise ClipError too_large if a picture is larger than 8K."""
    if width * height > MAX_PIXELS:
        raise ClipError("too_large", f"a picture of {width}x{height} is larger than 8K ({MAX_PIXELS:,} pixels)")


def apply_display_matrix(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror an image (H, W, 3) as a display matrix says.

    matrix: (9,) int32 (a, b, u, c, d, v, x, y, w) as in ISO/IEC 14496-12, section 6.2.2: the pixel (p, q), counted from
    the top left, is shown at (a p + c q + x, b p + d q + y). The offset and the scale do not matter here.
    """
    a, b, c, d = matrix[[0, 1, 3, 4]].astype(np.float64)
    scale_p, scale_q = np.hypot(a, b), np.hypot(c, d)
    if not scale_p or not scale_q:
        return image  # a damaged matrix, which shows no picture at all
    a, b, c, d = a / scale_p, b / scale_p, c / scale_q, d / scale_q
    if min(abs(a), abs(b)) > SMALL_SINE:
        return _transform(image, np.array([[a, c], [b, d]]))
    if abs(b) > abs(a):  # columns are shown as rows
        image, across, down = image.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _transform(image: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Map an image (H, W, 3) by a matrix (2, 2) of (column, row), into the smallest picture that holds all of it."""
    height, width = image.shape[:2]
    corners = linear @ np.array([[0, width, 0, width], [0, 0, height, height]])
    left, top = corners.min(axis=1)
    shown_width, shown_height = np.ceil(corners.max(axis=1) - (left, top)).astype(int).tolist()
    check_size(shown_width, shown_height)
    # Pillow wants the map from the new picture to the old one.
    inverse = np.linalg.inv(linear)
    offset = inverse @ (left, top)
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    return np.asarray(
        Image.fromarray(image).transform(
            (shown_width, shown_height), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
        )
    )
