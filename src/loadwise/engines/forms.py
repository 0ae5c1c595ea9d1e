"""Forms (multipart/form-data): short fields are read, one is replaced, all else stays byte for byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from loadwise.errors import RequestError

CONTENT_TYPE: Final = "multipart/form-data"
# Fields beyond these are no form that an audio or image request sends.
MOST_PARTS: Final = 64
MOST_FIELD_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Field:
    """A field's value and where in the body it begins."""

    value: bytes
    start: int


@dataclass(slots=True)
class _Part:
    header: bytes = b""
    name: bytes = b""
    value: bytearray = field(default_factory=bytearray)
    start: int = -1
    kept: bool = False


class _Reader:
    """Callbacks of the parser: keeps the short fields, passes over files."""

    def __init__(self) -> None:
        self.fields: dict[str, Field] = {}
        self._part = _Part()
        self._parts = 0
        self.complete = False

    def on_part_begin(self) -> None:
        self._part, self._parts = _Part(), self._parts + 1
        if self._parts > MOST_PARTS:
            raise _wrong(f"it has more than {MOST_PARTS} parts")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        if self._part.header.lower() == b"content-disposition":
            self._part.name += data[start:end]

    def on_header_end(self) -> None:
        self._part.header = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.name)
        self._part.kept = b"name" in options and b"filename" not in options
        self._part.name = options.get(b"name", b"")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if not part.kept:
            return
        part.start = start if part.start < 0 else part.start
        part.value += data[start:end]
        part.kept = len(part.value) <= MOST_FIELD_BYTES

    def on_part_end(self) -> None:
        part = self._part
        if not part.kept or part.start < 0:
            return
        name = part.name.decode("utf-8", "replace")
        if name in self.fields:
            # Two readers of one form could each believe another value.
            raise _wrong(f"it has the field {name!r:.80} twice")
        self.fields[name] = Field(bytes(part.value), part.start)

    def on_end(self) -> None:
        self.complete = True


def read_form(body: bytes, content_type: str) -> dict[str, Field]:
    """The form's short text fields by name; `RequestError` 400 when it is no complete form."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != CONTENT_TYPE.encode() or not boundary:
        raise _wrong(f"its content-type must be {CONTENT_TYPE} with a boundary")
    reader = _Reader()
    names = [name for name in dir(_Reader) if name.startswith("on_")]
    try:
        parser = MultipartParser(boundary, {name: getattr(reader, name) for name in names})  # type: ignore[arg-type]  # a TypedDict, made from names
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _wrong(str(error)) from None
    if not reader.complete:
        raise _wrong("its end is missing")
    return reader.fields


def with_field(body: bytes, content_type: str, name: str, value: str) -> bytes:
    """The form with one of its fields set to `value`; the body itself where it has that value already."""
    found = read_form(body, content_type).get(name)
    if found is None:
        raise _wrong(f"it has no field {name!r}")
    new, end = value.encode(), found.start + len(found.value)
    return body if found.value == new else b"".join((body[: found.start], new, body[end:]))


def _wrong(what: str) -> RequestError:
    return RequestError(f"The request's form cannot be read: {what}.", code="invalid_form")
