"""OpenVINO GenAI's continuous batching, in a child process of its own.

Its `step()` holds the interpreter's lock from beginning to end (a prompt of 1,800 tokens: 0.2 s), so in
the server's process every step would stop the event loop. The child steps; one frame per step brings
the news of all its sequences.
"""

from loadwise.engines.openvino.engine import FEATURES, OpenVinoEngine

__all__ = ["FEATURES", "OpenVinoEngine"]
