"""Text with a header and separated values: its encoding, its delimiter, its rows."""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from runner.errors import UsageError, counted

DELIMITERS = ",;\t|"
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
NOT_IN_CP1252 = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
LOOKED_AT = 65_536  # characters, for the delimiter


@dataclass(frozen=True)
class Text:
    text: str
    encoding: str


def decode(content: bytes, path: Path, *, encoding: str = "", start: int = 0, whole: bool = True) -> Text:
    """The text and its encoding, guessed where none is given; of a part the lines that are whole.

    Raises UsageError for bytes that are no text.
    """
    guessed = encoding or _encoding(content)
    try:
        text = codecs.getincrementaldecoder(guessed)().decode(content, final=whole).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} begins as {guessed} and is not: {error.reason}. Save it as UTF-8.") from error
    if not whole:
        text = text[: text.rfind("\n") + 1]
    if "\0" in text:
        line = f", line {text[: text.index(chr(0))].count(chr(10)) + 1}" if not start else ""
        raise UsageError(f"{path}{line}: a NUL byte, so this is a binary or damaged file. Bring the table as CSV.")
    odd = sum(character < " " and character not in "\t\r\n\f\v" for character in text[:LOOKED_AT])
    if odd > len(text[:LOOKED_AT]) // 100:
        raise UsageError(f"{path} has control characters in place of text. Bring the table as CSV.")
    return Text(text, guessed)


def first_line(line: str, beginning: bytes, encoding: str) -> tuple[bytes, bytes]:
    """The byte order mark with which a file begins, and the line as what comes before its rows behind that mark.

    Raises UsageError for a line that the file's encoding cannot write.
    """
    mark = next((mark for mark in MARKS if beginning.startswith(mark)), b"")
    own = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    try:
        return mark, f"{line}\n".encode(own.get(mark, encoding))
    except UnicodeEncodeError as error:
        problem = f"--names: the table is {encoding}, which has no {line[error.start]!r}"
        raise UsageError(f"{problem}. Write another name.") from None


def by_lines(encoding: str) -> bool:
    """Whether parts of such a file can be read from any line's beginning."""
    return not encoding.startswith("utf-16")


def delimiter(text: str) -> str:
    """That by which the first lines have most often the header's number of values, more than one."""
    beginning = text[:LOOKED_AT]
    if len(text) > LOOKED_AT:
        beginning = beginning[: beginning.rfind("\n") + 1] or beginning
    scores = {one: _agreement(beginning, one) for one in DELIMITERS}
    return max(scores, key=lambda one: scores[one])


def rows(text: str, delimiter: str, path: Path, *, header: list[str]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows below it; where `header` is given, the text has none. Blank lines are no rows.

    Raises UsageError for quotes that do not end, a row of another width, and a first line that is no header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records = []
    try:
        for record in reader:
            if len(record) > 1 or (record and record[0].strip()):
                records.append(record)
                width = len(header or records[0])
                if len(record) != width:
                    remedy = "Each row needs a value, or a blank, for each column."
                    if len(record) == 1:
                        remedy = "Separate values by a comma, a semicolon, a tab or |."
                    values, columns = counted(len(record), "value"), counted(width, "column")
                    raise UsageError(f"{path}, line {reader.line_num}: {values} under {columns}. {remedy}")
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: {error}. Check the quotes there.") from error
    if header:
        return header, records
    if not records:
        raise UsageError(f"{path} is empty. It needs a header and rows.")
    return records[0], records[1:]


def is_data(header: list[str]) -> bool:
    """Whether the first line is a row rather than names: numbers, other than years or 0, 1, 2 …"""
    numbers = [name for name in header if NUMBER.fullmatch(name.strip())]
    whole = [name for name in numbers if name.strip().isdecimal()]
    are_names = all(1800 <= int(name) <= 2200 for name in whole) or whole == [str(at) for at in range(len(whole))]
    return len(whole) < len(numbers) or (2 * len(numbers) > len(header) and not are_names)


def _encoding(content: bytes) -> str:
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return encoding
    sides = content[:4096:2].count(0), content[1:4096:2].count(0)
    if max(sides) > 10 * min(sides) + 20:
        return "utf-16-be" if sides[0] > sides[1] else "utf-16-le"
    try:
        content.decode()
    except UnicodeDecodeError:
        return "latin-1" if any(byte in content for byte in NOT_IN_CP1252) else "cp1252"
    return "utf-8"


def _agreement(text: str, delimiter: str) -> tuple[float, int]:
    """(share of the rows that are as wide as the header, the header's width); (0, 0) where that is one."""
    try:
        widths = [len(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error:
        return 0.0, 0
    if not widths or widths[0] < 2:
        return 0.0, 0
    return round(widths.count(widths[0]) / len(widths), 2), widths[0]
