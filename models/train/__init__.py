"""Trains the model family that ships with loadwise: corpus, tokenizer, trainer, exporter, card."""
