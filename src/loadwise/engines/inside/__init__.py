"""Engines whose own server loadwise runs in: what their statistics say, and what they are."""
