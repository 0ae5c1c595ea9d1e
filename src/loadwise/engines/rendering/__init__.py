"""What every embedded engine shares: templates, text, stop strings, server-sent events, usage."""

from loadwise.engines.rendering.engine import RenderedEngine

__all__ = ["RenderedEngine"]
