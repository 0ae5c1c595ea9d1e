"""What an upstream gets is what the client sent."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.decision.facts import Endpoint
from loadwise.engines.forwarding import outgoing, request_headers, response_headers
from loadwise.errors import RequestError
from loadwise.ports import Call

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
BODIES = st.dictionaries(st.text(), VALUES, max_size=6)


@settings(max_examples=200)
@given(body=BODIES, model=st.text())
def test_only_the_model_s_name_changes(body, model):
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    assert json.loads(outgoing(raw, model)[0]) == json.loads(raw) | {"model": model}


@given(body=BODIES)
def test_a_body_that_names_the_model_goes_byte_for_byte(body):
    raw = json.dumps(body | {"model": "m"}, indent=1).encode()
    assert outgoing(raw, "m") == (raw, False)
    assert outgoing(raw, None) == (raw, False)


@settings(max_examples=150)
@given(
    body=BODIES, options=st.none() | st.dictionaries(st.sampled_from(["x", "continuous_usage_stats"]), VALUES)
)
def test_usage_is_asked_for_beside_what_the_client_asked(body, options):
    raw = json.dumps(body | {"stream_options": options}).encode()
    asked, asking = outgoing(raw, None, usage=True)
    assert asking
    expected = (options or {}) | {"include_usage": True}
    assert json.loads(asked) == json.loads(raw) | {"stream_options": json.loads(json.dumps(expected))}


def test_who_asks_for_usage_is_not_asked_for():
    for raw in (b'{"stream_options": {"include_usage": true}}', b'{"stream_options": 7}'):
        assert outgoing(raw, None, usage=True) == (raw, False)
    asked, asking = outgoing(b"{}", "m", usage=True)
    assert (json.loads(asked), asking) == ({"model": "m", "stream_options": {"include_usage": True}}, True)


def test_huge_numbers_and_spellings_survive():
    raw = b'{"a": 123456789012345678901234567890, "b": 1.00, "c": 1e2, "d": "\\u00e9"}'
    changed, _ = outgoing(raw, "m")
    assert b"123456789012345678901234567890" in changed
    assert b"1.00" in changed
    assert b"\\u00e9" in changed


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"a":' + b"[" * 100_000])
def test_no_object_is_no_request(raw):
    with pytest.raises(RequestError):
        outgoing(raw, "m")


def test_the_client_s_key_and_connection_stay_here():
    headers = {
        "authorization": "Bearer client",
        "cookie": "a=b",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "te": "trailers",
        "traceparent": "00-1",
        "host": "evil",
    }
    call = Call(endpoint=Endpoint.CHAT, body=b"{}", request_id="r7", headers=headers)
    sent = request_headers(call, "ours")
    assert sent["authorization"] == "Bearer ours"
    assert sent["traceparent"] == "00-1"
    assert sent["x-request-id"] == "r7"
    assert not {"cookie", "connection", "x-hop", "te", "host"} & set(sent)
    assert "authorization" not in request_headers(call, None)


def test_the_upstream_s_connection_stays_there():
    headers = [
        ("Content-Type", "text/plain"),
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Set-Cookie", "a=b"),
        ("Retry-After", "3"),
        ("X-Bad", "a\r\nb: c"),
    ]
    assert response_headers(headers) == [("content-type", "text/plain"), ("retry-after", "3")]
