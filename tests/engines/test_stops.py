"""Stop strings end answers wherever token borders fall."""

from hypothesis import given
from hypothesis import strategies as st

from loadwise.engines.rendering.stops import StopScanner

SHORT = st.text(alphabet="ab#", max_size=24)


@given(
    text=SHORT, stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_any_split_returns_the_text_before_the_first_stop(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    scanner, returned, stopped = StopScanner(stops), "", False
    for piece in pieces:
        more, stopped = scanner.feed(piece)
        returned += more
        if stopped:
            break
    returned += "" if stopped else scanner.flush()
    # A longer stop string may begin before a shorter one that ends first.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert stopped == bool(ends)
    assert text.startswith(returned)
    if stopped:
        assert any(text[len(returned) :].startswith(stop) for stop in stops)
        assert not any(stop in returned for stop in stops)
    else:
        assert returned == text


def test_without_stops_text_passes_at_once():
    assert StopScanner(()).feed("abc") == ("abc", False)


def test_a_possible_beginning_is_withheld_until_decided():
    scanner = StopScanner(["END"])
    assert scanner.feed("xE") == ("x", False)
    assert scanner.feed("N") == ("", False)
    assert scanner.feed("O") == ("ENO", False)


def test_an_inactive_scanner_lets_a_stop_string_pass():
    scanner = StopScanner(["END"])
    assert scanner.feed("aENDb", active=False) == ("aENDb", False)
    assert scanner.feed("END") == ("", True)
