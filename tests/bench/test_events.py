"""Server-sent events: wherever the network cuts them, the same events come out."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loadwise.bench.events import Event, EventReader, parse

STREAM = (
    b'data: {"model":"m","choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}\r\n\r\n'
    b": a comment\n\n"
    b'data: {"choices":[{"text":"x\\n\\ndata: y"}]}\n\n'
    b'event: message\ndata:{"choices":[{"delta":{"content":"z"}}],"usage":null}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
EVENTS = [
    Event(model="m"),
    Event(has_token=True),
    Event(has_token=True),
    Event(prompt_tokens=4, completion_tokens=2),
    Event(done=True),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_the_cuts_of_the_network_do_not_matter(cuts: list[int]) -> None:
    reader = EventReader()
    places = [0, *sorted(cuts), len(STREAM)]
    events = [event for start, end in pairwise(places) for event in reader.feed(STREAM[start:end])]
    assert events == EVENTS


def test_a_finish_reason_counts_as_seen_but_a_role_does_not() -> None:
    assert parse(b'{"choices":[{"text":"","finish_reason":"length"}]}').has_token
    assert not parse(b'{"choices":[{"text":""}]}').has_token


def test_errors_in_the_stream_are_named() -> None:
    assert parse(json.dumps({"error": {"message": "no"}}).encode()).error == "no"
    assert parse(b'{"error":{}}').error == "error event"
    assert (parse(b"{").error or "").startswith("unreadable event")
