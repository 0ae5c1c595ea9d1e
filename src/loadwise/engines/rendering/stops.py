"""Stop strings across token borders: neither they nor anything after them is returned."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Withholds text that may be the beginning of a stop string until that is decided."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""

    def feed(self, text: str, *, active: bool = True) -> tuple[str, bool]:
        """Text that may be returned, and whether a stop string ended the answer.

        While `active` is false (fewer tokens than `min_tokens`) a match does not end it.
        """
        if not self._stops:
            return text, False
        buffer = self._held + text
        if active and (end := self._first_match(buffer)) is not None:
            self._held = ""
            return buffer[:end], True
        held = self._possible_beginning(buffer)
        self._held = buffer[len(buffer) - held :]
        return buffer[: len(buffer) - held], False

    def flush(self) -> str:
        """What was withheld, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, buffer: str) -> int | None:
        places = [place for stop in self._stops if (place := buffer.find(stop)) >= 0]
        return min(places, default=None)

    def _possible_beginning(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that begins a stop string."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            tail = buffer[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
