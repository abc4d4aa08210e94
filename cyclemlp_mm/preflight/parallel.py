"""Many files at once, with a bar on a terminal and nothing elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import track

#: How many files of a data set are looked at where not all are.
SAMPLED = 64


def sample(items: Sequence, full: bool) -> list:
    """All items, or ``SAMPLED`` evenly spread ones."""
    if full or len(items) <= SAMPLED:
        return list(items)
    return [items[i * len(items) // SAMPLED] for i in range(SAMPLED)]


def in_parallel(look: Callable, items: Sequence, title: str) -> list:
    """``look`` at every item, in threads (reading and decoding leave Python's lock).

    Args:
        look (Callable): Takes an item.
        items (Sequence): The items.
        title (str): For the bar.

    Returns:
        list: Results in the order of the items.
    """
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        results = pool.map(look, items)
        console = Console(stderr=True)
        if not (console.is_terminal and sys.stderr.isatty()):
            return list(results)
        return list(track(results, title, len(items), console=console, transient=True))
