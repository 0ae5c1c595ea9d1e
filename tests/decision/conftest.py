"""Properties are judged by what holds, never by how long a busy machine takes to show it."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
