"""A model folder's tokenizer: text to ids, and ids back to text as they come, never half a character."""

from __future__ import annotations

import codecs
import copy
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers.decoders import DecodeStream

from loadwise.errors import ConfigurationError

TOKENIZER_FILE = "tokenizer.json"
# Encodings of longer texts are not kept.
REMEMBERED_CHARS = 32_768


class Detokenizer(Protocol):
    """Turns one sequence's ids into text piece by piece; the pieces joined are the whole text."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that these ids complete; may be empty in the middle of a character."""
        ...

    def flush(self) -> str:
        """What is left at the end: an unfinished character becomes U+FFFD."""
        ...


class Tokenizer:
    """A fast tokenizer with its fingerprint; safe to share between members and threads."""

    def __init__(self, inner: tokenizers.Tokenizer, fingerprint: str, folder: Path | None = None) -> None:
        self.inner = inner
        # Where it came from, for what lies beside it (the chat template).
        self.folder = folder
        # Equal fingerprints mean equal ids for equal text.
        self.fingerprint = fingerprint
        state = json.loads(inner.to_str())
        self._byte_level = (state.get("decoder") or {}).get("type") == "ByteLevel"
        self._special = {token["id"] for token in state.get("added_tokens", ()) if token.get("special")}
        self._bytes: dict[int, bytes] = {}
        self.vocabulary_size = inner.get_vocab_size()
        # Only without a normalizer is every byte of a text still there to be covered by tokens.
        plain = self._byte_level and state.get("normalizer") is None
        self._longest_token = max(map(len, inner.get_vocab()), default=0) if plain else 0
        # A prompt is counted when it is routed and encoded again when it is answered.
        self._encode_again = lru_cache(maxsize=256)(self._encode)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model folder; `ConfigurationError` when it has no usable one."""
        path = folder / TOKENIZER_FILE
        try:
            text = path.read_text(encoding="utf-8")
            inner = tokenizers.Tokenizer.from_str(text)
        except OSError as error:
            raise ConfigurationError(
                f"{folder} has no readable {TOKENIZER_FILE} ({error.strerror or error}): "
                "save the model together with its fast tokenizer.",
                field="path",
            ) from None
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every malformed file
            raise ConfigurationError(f"{path} is no tokenizer: {error}", field="path") from None
        return cls(inner, hashlib.sha256(text.encode()).hexdigest()[:16], folder)

    def beside(self, folder: Path) -> Tokenizer:
        """The same tokenizer, encodings kept so far included, as it lies in another folder."""
        other = copy.copy(self)
        other.folder = folder
        return other

    def encode(self, text: str, *, add_special: bool) -> tuple[int, ...]:
        """Ids of a text; `add_special` adds what the tokenizer puts around a text (begin-of-sequence)."""
        return (self._encode_again if len(text) <= REMEMBERED_CHARS else self._encode)(text, add_special)

    def _encode(self, text: str, add_special: bool) -> tuple[int, ...]:
        return tuple(self.inner.encode(text, add_special_tokens=add_special).ids)

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that the text needs at least, known without encoding it."""
        return len(text) // self._longest_token if self._longest_token else 0

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids without special tokens."""
        detokenizer = self.detokenizer()
        return detokenizer.feed(token_ids) + detokenizer.flush()

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder for one sequence."""
        return _ByteLevelDetokenizer(self) if self._byte_level else _GenericDetokenizer(self.inner)

    def text_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to the text; empty for special tokens and unknown ids."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = b"" if token_id in self._special else self.token_bytes(token_id)
        return known

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself, special tokens included."""
        piece = self.inner.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            return _unmap(piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace("▁", " ").encode()


class _ByteLevelDetokenizer:
    """For byte-level vocabularies: a table look-up per token, exact also for invalid sequences."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._known = tokenizer._bytes
        self._text_bytes = tokenizer.text_bytes
        self._decode: Any = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token_ids: Sequence[int]) -> str:
        known = self._known
        try:
            raw = (
                known[token_ids[0]]
                if len(token_ids) == 1
                else b"".join([known[token] for token in token_ids])
            )
        except KeyError:
            raw = b"".join([self._text_bytes(token) for token in token_ids])
        text: str = self._decode(raw)
        return text

    def flush(self) -> str:
        text: str = self._decode(b"", True)
        return text


class _GenericDetokenizer:
    """For every other vocabulary: the library's own decoder, which knows about spaces and fallbacks."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._emitted = 0

    def feed(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        text = "".join([self._stream.step(self._inner, token) or "" for token in token_ids])
        self._emitted += len(text)
        return text

    def flush(self) -> str:
        whole: str = self._inner.decode(self._ids, skip_special_tokens=True)
        rest = whole[self._emitted :]
        self._emitted = len(whole)
        return rest


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _unmap(piece: str) -> bytes:
    """The bytes of a byte-level piece; an added token outside the alphabet stands for itself."""
    try:
        return bytes([_ALPHABET[character] for character in piece])
    except KeyError:
        return piece.encode()
