"""Reads the records of a JSON list or of JSON lines one after the other, in a bounded window.

Bytes are scanned as Latin-1, where one letter is one byte and JSON's own signs are what they are in
UTF-8; so offsets are bytes, and only records with other letters are decoded a second time.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llava.errors import LawError

WINDOW = 8 << 20
"""Bytes that are read at once."""
LARGEST_RECORD = 256 << 20
"""Bytes; a record beyond this is a file whose quotes do not match, not a conversation."""
CUT = 16
"""Bytes before the window's end where an error may come from the cut: no token but a string is
longer."""

BOM = b"\xef\xbb\xbf"
OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff")
SPACE = re.compile(r"[ \t\r\n]*")

_decode = json.JSONDecoder().raw_decode


def scan(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(first byte, byte behind it, record) of every record in the file's order.

    A file that starts with `[` is a list, one that starts with `{` holds a record per line. Raises
    LawError with the record's number, byte and line where the file is anything else or broken.
    """
    try:
        with open(path, "rb") as handle:
            yield from _Scanner(path, handle).records()
    except OSError as error:
        raise LawError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse(data: bytes) -> Any:
    """The JSON value that `data` begins with, whatever stands behind it; ValueError for none."""
    return _decode(data.decode("utf-8"))[0]


class _Scanner:
    """A window that moves over a file."""

    def __init__(self, path: Path, handle: BinaryIO):
        self.path, self.handle = path, handle
        self.base = 0  # the file's byte that `text` begins with
        self.text = ""
        self.at = 0
        self.count = 0

    def records(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        while len(self.text) < len(BOM) and self._more():
            pass
        self._check_start()
        first = self._skip_space()
        if first == "[":
            yield from self._list()
        elif first == "{":
            yield from self._lines()
        elif not first:
            raise self.broken("is empty; expected a list of records, or one per line")
        else:
            raise self.broken(f"expected '[' or '{{', found {first!r}")

    def _check_start(self) -> None:
        start = self.text[:3].encode("latin-1")
        if start.startswith(BOM):
            self.at = len(BOM)
        elif start.startswith(OTHER_ENCODINGS) or b"\0" in start:
            raise self.broken("is not UTF-8; save it as UTF-8")

    def _list(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        self.at += 1
        if self._skip_space() == "]":
            raise self.broken("is an empty list; expected records")
        while True:
            yield self._record()
            following = self._skip_space()
            if following not in (",", "]"):
                where = f"found {following!r}" if following else "the file ends: is it cut short?"
                raise self.broken(f"expected ',' or ']' behind the record; {where}")
            self.at += 1
            if following == "]":
                break
            if self._skip_space() == "]":
                raise self.broken("expected a record behind ','; take the last comma away")
        if extra := self._skip_space():
            raise self.broken(f"expected the end of the file behind the list, found {extra!r}")

    def _lines(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        while following := self._skip_space():
            if following == ",":
                raise self.broken("found ',' between lines; a list of records stands in [ ]")
            yield self._record()

    def _record(self) -> tuple[int, int, dict[str, Any]]:
        if (first := self._skip_space()) != "{":
            where = f"found {first!r}" if first else "the file ends: is it cut short?"
            raise self.broken(f"expected a record, {{...}}; {where}")
        value, end = self._value()
        start, self.at = self.at, end
        if not self.text.isascii():
            piece = self.text[start:end]
            if not piece.isascii():
                value = self._as_utf8(piece, start)
        self.count += 1
        return self.base + start, self.base + end, value

    def _value(self) -> tuple[dict[str, Any], int]:
        """The record at `at` and where it ends; the window grows until it holds all of it."""
        while True:
            try:
                return _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - CUT
                if cut and self._more():
                    continue
                short = " (is the file cut short?)" if cut else ""
                raise self.broken(f"{error.msg}{short}", error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.broken(str(error)) from None

    def _as_utf8(self, piece: str, start: int) -> dict[str, Any]:
        try:
            return parse(piece.encode("latin-1"))
        except UnicodeDecodeError as error:
            raise self.broken(f"is not UTF-8: {error.reason}", start + error.start) from None

    def _skip_space(self) -> str:
        """The next sign that is no space, which is not passed; '' at the end of the file."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Drops what is done and reads on; whether there was anything to read."""
        rest = self.text[self.at :]
        if len(rest) > LARGEST_RECORD:
            raise self.broken(
                f"goes on for more than {LARGEST_RECORD >> 20} MiB; a quote is missing somewhere"
            )
        data = self.handle.read(max(WINDOW, len(rest)))
        self.base += self.at
        self.text, self.at = rest + data.decode("latin-1"), 0
        return bool(data)

    def broken(self, why: str, at: int | None = None) -> LawError:
        """Names file, record, byte and line; `at` is a place in the window."""
        byte = self.base + (self.at if at is None else at)
        line = 1 + _newlines(self.path, byte)
        return LawError(f"{self.path}: record {self.count}, byte {byte}, line {line}: {why}")


def _newlines(path: Path, before: int) -> int:
    """Newlines in the first bytes of a file."""
    count = 0
    with open(path, "rb") as handle:
        while before > 0 and (data := handle.read(min(WINDOW, before))):
            count += data.count(b"\n")
            before -= len(data)
    return count
