"""JSON as data sets have it."""

import json
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=2)
def read_json(path: Path) -> object:
    """Read a JSON file; the last two are kept, as several checks ask for the same."""
    return json.loads(path.read_text(encoding='utf-8'))
