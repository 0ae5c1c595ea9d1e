"""Log records as the structured events that they were written as."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from loadwise.logs import FIELDS


def events(records: Iterable[logging.LogRecord]) -> list[dict[str, Any]]:
    """The fields of those records that loadwise wrote, with their level."""
    return [
        {**getattr(record, FIELDS), "level": record.levelname.lower()}
        for record in records
        if hasattr(record, FIELDS)
    ]
