"""Tables that people make: CSV files with commas, semicolons or tabs, in whatever encoding their program wrote."""

import csv
import io
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mertool.errors import MertoolError
from mertool.untrusted import read_bytes

# Texts of a megabyte are transcripts of long recordings; the limit of the csv module is 131,072 characters. The
# module keeps it in a C long, which has 32 bits on Windows.
csv.field_size_limit(2**31 - 1)

MAX_TABLE_BYTES = 512 << 20
MAX_COLUMNS = 2000
DELIMITERS = (",", ";", "\t")
UTF_BOMS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Zip archives (xlsx, ods) and the older xls.
SPREADSHEET_MAGIC = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
# Text that is too short fits several encodings equally well; these are then the likely ones.
LIKELY_ENCODINGS = ("gb18030", "cp1252", "cp1250")
MIN_COHERENCE, MIN_COMMON_CHINESE = 0.1, 0.9


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a CSV file.

    path: of the file.
    columns: names of the columns in lower case, as the header has them.
    rows: cells by column; a missing cell at the end of a row is empty.
    row_numbers: number of each row in the file; the header is row 1. Empty rows are left out.
    uneven: numbers of rows whose number of cells is not the header's, with that number.
    notes: sentences on how the file was read, for the user.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    row_numbers: list[int]
    uneven: dict[int, int]
    notes: tuple[str, ...] = ()


def normalize(text: str) -> str:
    """Return `text` without spaces around it, in Unicode's form NFC; file names of macOS are in form NFD.

    >>> len(normalize(" e\\u0301 "))
    1
    """
    return unicodedata.normalize("NFC", text.strip())


def read_table(path: Path, content: str) -> Table:
    """Read a CSV file with a header; `content` says in error messages what the file should hold.

    Raises MertoolError for a file that does not exist, cannot be read, or is a spreadsheet.
    """
    text, notes = read_text(path, content)
    if text.lower().startswith("sep="):  # Excel writes its delimiter into the first line, if asked to
        text = text.partition("\n")[2]
    delimiter = _find_delimiter(text)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise MertoolError(f"{path} is not a CSV file ({error}): give {content} as CSV in UTF-8") from error
    if lines and len(lines[0]) > MAX_COLUMNS:
        raise MertoolError(f"{path} has {len(lines[0]):,} columns, at most {MAX_COLUMNS:,} are read: give {content}")
    columns = tuple(normalize(name).lower() for name in lines[0]) if lines else ()
    numbered = [(number, row) for number, row in enumerate(lines[1:], start=2) if any(map(str.strip, row))]
    return Table(
        path=path,
        columns=columns,
        rows=[dict(zip(columns, row + [""] * len(columns), strict=False)) for _, row in numbered],
        row_numbers=[number for number, _ in numbered],
        uneven={number: len(row) for number, row in numbered if len(row) != len(columns)},
        notes=notes,
    )


def read_text(path: Path, content: str) -> tuple[str, tuple[str, ...]]:
    """Return the text of a file and, where it is not in UTF-8, a note that names its encoding.

    UTF-16 is recognised by its byte order mark or its zero bytes, other encodings by charset-normalizer.
    """
    if not path.exists():
        raise MertoolError(f"{content} file {path} does not exist")
    data = read_bytes(path, f"give {content} as a text file", max_bytes=MAX_TABLE_BYTES)
    if data.startswith(SPREADSHEET_MAGIC):
        raise MertoolError(f"{path} is a spreadsheet (Excel, ...): save it as CSV UTF-8 and give that file")
    mark = next((name for mark, name in UTF_BOMS.items() if data.startswith(mark)), None)
    # ASCII in UTF-16 is valid UTF-8 with zero bytes in it, so UTF-16 is tried before.
    encoding = mark or _utf16_without_mark(data)
    if encoding is None and _is_utf8(data):
        encoding = "utf-8"
    encoding = encoding or _detect_encoding(data) or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise MertoolError(f"{path} is not text in a known encoding ({error}): save it as CSV UTF-8") from error
    if encoding.startswith("utf-8"):
        return text, ()
    return text, (f"{path} is read as {encoding.upper()}, because it is not in UTF-8",)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _utf16_without_mark(data: bytes) -> str | None:
    """Return the byte order of UTF-16 from the zero bytes that each ASCII character has in it; None without them."""
    head = data[:4096]
    zeros = Counter(position % 2 for position, byte in enumerate(head) if byte == 0)
    if sum(zeros.values()) <= len(head) / 8:
        return None
    return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"


def _detect_encoding(data: bytes) -> str | None:
    """Return the encoding that charset-normalizer finds; None if the file is no text.

    A few labels are too short for its statistics of languages. GBK is then assumed if it gives common Chinese
    characters, else one of LIKELY_ENCODINGS if it fits as well as the best.
    """
    from charset_normalizer import from_bytes

    matches = list(from_bytes(data))
    coherence = {match.encoding: match.coherence for match in reversed(matches)}
    # The coherence of a text with much English in it is that of the English, in any encoding.
    language_says_other = bool(matches) and matches[0].coherence > coherence.get("gb18030", 0.0) + MIN_COHERENCE
    if not language_says_other and _share_of_common_chinese(data) > MIN_COMMON_CHINESE:
        return "gb18030"
    best = [match.encoding for match in matches if match.chaos <= matches[0].chaos]
    likely = [name for name in LIKELY_ENCODINGS if name in best]
    return next(iter(likely + best), None)


def _share_of_common_chinese(data: bytes) -> float:
    """Return the share of characters, ASCII left out, that GB18030 makes common Chinese ones or full-width marks.

    Those are level 1 of the older standard GB 2312, 3,755 characters that are sorted by frequency of use. Other
    encodings with two bytes a character seldom stay within it, and European ones never do.
    """
    try:
        characters = [character for character in data.decode("gb18030") if not character.isascii()]
    except UnicodeDecodeError:
        return 0.0
    codes = (character.encode("gb2312", "ignore") for character in characters)
    common = sum(len(code) == 2 and (0xB0 <= code[0] <= 0xD7 or code[0] in (0xA1, 0xA3)) for code in codes)
    return common / max(1, len(characters))


def _find_delimiter(text: str) -> str:
    """Return the delimiter that is most frequent in the header."""
    return max(DELIMITERS, key=text.partition("\n")[0].count)
