"""Streams of an upstream are cut where events end, and read without being changed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.engines.events import MAX_EVENT_BYTES, SideReader, Splitter
from loadwise.ports import Progress

LINES = st.sampled_from([b"data: {}", b": comment", b"event: x", b"data: a", b"data:", b"id: 7"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
EVENTS = st.lists(st.tuples(st.lists(LINES, min_size=1, max_size=3), ENDS), max_size=5)


def written(events):
    return [b"".join(line + end for line in lines) + end for lines, end in events]


@settings(max_examples=150)
@given(events=EVENTS, data=st.data())
def test_events_joined_are_the_stream_wherever_it_is_split(events, data):
    raw = b"".join(written(events))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    splitter = Splitter()
    found = [e for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True) for e in splitter.feed(raw[a:b])]
    assert b"".join(found) + splitter.rest() == raw


@given(count=st.integers(1, 5), end=st.sampled_from([b"\n", b"\r\n"]))
def test_split_at_every_byte_gives_the_same_events(count, end):
    events = [b"data: %d%s%s" % (place, end, end) for place in range(count)]
    splitter = Splitter()
    assert [e for byte in b"".join(events) for e in splitter.feed(bytes([byte]))] == events


def test_an_endless_event_is_passed_on():
    splitter = Splitter()
    assert splitter.feed(b"x" * (MAX_EVENT_BYTES + 1)) == [b"x" * (MAX_EVENT_BYTES + 1)]


def read(*events):
    progress = Progress()
    reader = SideReader(progress, lambda: 5.0)
    return progress, [reader.event(event) for event in events], reader


def test_role_chunks_are_no_tokens_and_the_first_text_is_the_first_token():
    progress, _, _ = read(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
    assert progress.first_token_s is None
    progress, _, _ = read(b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}]}\n\n')
    assert (progress.first_token_s, progress.output_tokens) == (5.0, 1)


def test_reasoning_and_tool_calls_are_tokens_too():
    for part in (b'"reasoning_content":"x"', b'"reasoning":"x"', b'"tool_calls":[{"index":0}]'):
        progress, _, _ = read(b'data: {"choices":[{"delta":{' + part + b"}}]}\n\n")
        assert progress.first_token_s == 5.0


def test_only_the_chunk_of_usage_alone_is_marked():
    usage = b'"usage":{"prompt_tokens":3,"completion_tokens":9,"prompt_tokens_details":{"cached_tokens":2}}'
    progress, marked, reader = read(
        b'data: {"choices":[{"text":"a","finish_reason":"length"}],"usage":null}\n\n',
        b'data: {"choices":[],' + usage + b"}\r\n\r\n",
        b"data: [DONE]\n\n",
    )
    assert marked == [False, True, False]
    assert reader.done
    assert (progress.prompt_tokens, progress.output_tokens, progress.cached_tokens) == (3, 9, 2)
    assert progress.finish_reason == "length"


def test_data_over_several_lines_is_one_value():
    progress, _, _ = read(b'event: x\ndata: {"choices":\ndata: [{"text":"a"}]}\n\n')
    assert progress.output_tokens == 1


def test_an_error_inside_a_stream_counts_as_failed():
    progress, _, _ = read(b'data: {"error":{"message":"x"}}\n\n')
    assert progress.failed


@given(junk=st.binary(max_size=200))
def test_what_cannot_be_read_changes_nothing(junk):
    progress, _, _ = read(junk, b"data: " + junk, b'data: {"choices": "' + junk)
    assert progress == Progress()


def test_deep_nesting_is_no_error():
    progress, _, _ = read(b'data: {"choices":' + b"[" * 100_000)
    assert progress == Progress()
