"""Forms: the short fields are read, one may be replaced, every other byte stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadwise.engines.forms import MOST_FIELD_BYTES, MOST_PARTS, read_form, with_field
from loadwise.errors import RequestError

TYPE = "multipart/form-data; boundary=line"


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--line\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--line--\r\n"


AUDIO = part("file", b"\x00\r\n--lin\r\n\xff" * 9, '; filename="a.wav"')
# The boundary may stand in no part: that is its meaning.
values = st.binary(max_size=60).filter(lambda value: b"--line" not in value)


@given(values, values, st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=30))
def test_replacing_the_model_leaves_every_other_byte(audio: bytes, language: bytes, name: str) -> None:
    before = part("file", audio, '; filename="model"')
    after = part("language", language)
    body = form(before, part("model", b"auto"), after)
    if "--line" not in name:
        assert with_field(body, TYPE, "model", name) == form(before, part("model", name.encode()), after)
    assert with_field(body, TYPE, "model", "auto") is body


def test_files_are_passed_over_and_fields_read() -> None:
    fields = read_form(form(AUDIO, part("model", b"auto"), part("stream", b"true")), TYPE)
    assert {name: field.value for name, field in fields.items()} == {"model": b"auto", "stream": b"true"}


@pytest.mark.parametrize(
    ("body", "content_type", "why"),
    [
        (b"{}", "application/json", "boundary"),
        (b"{}", "multipart/form-data", "boundary"),
        (b"not a form", TYPE, "form"),
        (form(part("model", b"a"), part("model", b"b")), TYPE, "twice"),
        (form(*[part(f"f{at}", b"") for at in range(MOST_PARTS + 1)]), TYPE, f"{MOST_PARTS} parts"),
        (form(part("model", b"auto"))[:-10], TYPE, "end is missing"),
        (form(part("x" * 5000, b"auto")), TYPE, "form"),
    ],
)
def test_what_is_no_form_is_refused_with_its_reason(body: bytes, content_type: str, why: str) -> None:
    with pytest.raises(RequestError, match=why) as refused:
        read_form(body, content_type)
    assert refused.value.status == 400


def test_a_field_too_long_to_be_a_name_is_not_kept() -> None:
    assert read_form(form(part("model", b"x" * (MOST_FIELD_BYTES + 1))), TYPE) == {}
    with pytest.raises(RequestError, match="no field 'model'"):
        with_field(form(AUDIO), TYPE, "model", "whisper")
