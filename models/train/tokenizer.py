"""Trains the family's shared byte-level BPE tokenizer and writes the corpus as token files.

    python -m train.tokenizer --corpus build/corpus --out build/tokens

Token files are little-endian uint16, one stream: <|bos|> module <|endoftext|> <|bos|> module ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from train import corpus

ENTRIES = 4096
BOS, EOS, PAD = "<|bos|>", "<|endoftext|>", "<|pad|>"
SPECIAL = (BOS, EOS, PAD)
CONTEXT = 1024
# Names keep their underscores, numbers come in groups of three, and a line break takes its indent.
PIECES = r" ?[\p{L}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+"

# Messages become the kind of text the model knows: comments before code. An assistant's turn is
# the code itself, so what the user says last stands directly above what the model writes.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }}\n\n\n"
    "{% elif message['role'] == 'system' %}"
    '"""{{ message[\'content\'] }}"""\n\n'
    "{% else %}# {{ message['content'] | replace('\n', '\n# ') }}\n{% endif %}"
    "{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], entries: int = ENTRIES) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `entries` entries; prompts it encodes begin with <|bos|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Every module of the training stream begins so; a prompt does too.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def settings() -> dict[str, object]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }


def encode(tokenizer: Tokenizer, found: Iterable[corpus.Module]) -> np.ndarray:
    """All modules as one stream of token ids, each between <|bos|> and <|endoftext|>; uint16, (T,)."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    encodings = tokenizer.encode_batch([module.text for module in found], add_special_tokens=False)
    stream = [np.array([bos, *encoding.ids, eos], dtype="<u2") for encoding in encodings]
    return np.concatenate(stream)


def main() -> None:
    """Writes tokenizer.json, tokenizer_config.json, training.bin and held_out.bin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/tokens"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    # Only training modules shape the tokenizer: held-out text stays unseen by every part.
    tokenizer = train_tokenizer(m.text for m in corpus.read(arguments.corpus, "training"))
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(settings(), indent=1) + "\n")
    for name in ("training", "held_out"):
        stream = encode(tokenizer, corpus.read(arguments.corpus, name))
        stream.tofile(out / f"{name}.bin")
        print(f"{name}: {len(stream):,} tokens")


if __name__ == "__main__":
    main()
