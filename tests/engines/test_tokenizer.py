"""Text comes whole out of any tokens, in any pieces."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from loadwise.engines.tokenizer import Tokenizer
from loadwise.errors import ConfigurationError
from loadwise.testing.folders import write_tokenizer

# A special token's name inside a text is that token, which is no text.
TEXT = st.text().filter(lambda text: "<s>" not in text and "</s>" not in text)


@pytest.fixture(scope="module")
def metaspace():
    """A vocabulary with spaces in its pieces and bytes as a fallback, as sentencepiece makes them."""
    pieces = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "▁he", "llo", "▁world", "a", "b"]
    inner = tokenizers.Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(inner, "metaspace")


@given(text=TEXT, cut=st.integers(1, 5))
def test_text_survives_its_way_through_tokens_in_pieces(tokenizer, text, cut):
    ids = tokenizer.encode(text, add_special=False)
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.feed(ids[start : start + cut]) for start in range(0, len(ids), cut)]
    assert "".join([*pieces, detokenizer.flush()]) == text


@given(text=TEXT)
def test_no_piece_ends_in_half_a_character(tokenizer, text):
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.feed((token,)) for token in tokenizer.encode(text, add_special=False)]
    assert text.startswith("".join(pieces))
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(ids=st.lists(st.integers(0, 257), max_size=40))
def test_any_bytes_decode_as_the_library_decodes_them(tokenizer, ids):
    assert tokenizer.decode(ids) == tokenizer.inner.decode(ids, skip_special_tokens=True)


def test_an_unfinished_character_ends_as_a_replacement(tokenizer):
    ids = tokenizer.encode("é", add_special=False)
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.feed(ids[:1]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_are_no_text_but_have_bytes(tokenizer):
    assert tokenizer.encode("a", add_special=True)[0] == 0
    assert tokenizer.decode([0, *tokenizer.encode("a", add_special=False), 1]) == "a"
    assert tokenizer.token_bytes(0) == b"<s>"
    assert tokenizer.token_bytes(10_000) == b""


@given(text=st.text(alphabet="ab helo world é€", max_size=30))
def test_sentencepiece_vocabularies_join_to_the_library_s_text(metaspace, text):
    ids = metaspace.encode(text, add_special=False)
    detokenizer = metaspace.detokenizer()
    pieces = [detokenizer.feed((token,)) for token in ids]
    assert "".join([*pieces, detokenizer.flush()]) == metaspace.inner.decode(list(ids))


def test_sentencepiece_pieces_have_their_bytes(metaspace):
    assert metaspace.token_bytes(1 + 0xE9) == b"\xe9"
    assert metaspace.token_bytes(258) == b" he"
    assert metaspace.fewest_tokens("a long text") == 0


@given(text=st.text(max_size=60))
def test_the_fewest_tokens_are_never_more_than_the_tokens(tokenizer, text):
    assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text, add_special=False))


def test_an_encoding_is_kept_for_the_next_who_asks(tokenizer):
    first = tokenizer.encode("kept", add_special=False)
    assert tokenizer.encode("kept", add_special=False) is first
    assert tokenizer.beside(tokenizer.folder / "other").encode("kept", add_special=False) is first


def test_the_fingerprint_is_of_the_file(tmp_path):
    one, two = (
        Tokenizer.load(write_tokenizer(tmp_path / "a")),
        Tokenizer.load(write_tokenizer(tmp_path / "b")),
    )
    assert one.fingerprint == two.fingerprint
    path = tmp_path / "b" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1), encoding="utf-8")
    assert Tokenizer.load(tmp_path / "b").fingerprint != one.fingerprint


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no readable tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is no tokenizer"):
        Tokenizer.load(tmp_path)
