"""Parameters and FLOPs of every model, counted from its config and put into its metafile."""

from __future__ import annotations

import re
from pathlib import Path

from cyclemlp_mm.analysis import build_on_meta, count_parameters, count_parts
from cyclemlp_mm.engine import load_config

from .metafiles import Collection, Model


def measure(model: Model, root: str | Path) -> tuple[int, int]:
    """Build a model without weights, and count.

    Args:
        model (Model): From a metafile.
        root (str | Path): The project's root.

    Returns:
        tuple[int, int]: Parameters, and multiply-adds of one image of ``model.size``.
    """
    built = build_on_meta(load_config(str(Path(root) / model.config)))
    return count_parameters(built), sum(count_parts(built, model.size).values())


def write_measured(collection: Collection, root: str | Path) -> list[str]:
    """Put what was counted into the metafile; comments and order stay.

    Returns:
        list[str]: Names of the models whose figures changed.
    """
    text = collection.metafile.read_text(encoding='utf-8')
    changed = []
    for model in collection.models:
        parameters, flops = measure(model, root)
        if (parameters, flops) == (model.parameters, model.flops):
            continue
        changed.append(model.name)
        begin = re.search(rf'^\s*- Name: {re.escape(model.name)}\s*$', text, re.MULTILINE).start()
        head, entry = text[:begin], text[begin:]
        for key, value in (('Parameters', parameters), ('FLOPs', flops)):
            entry = re.sub(rf'^(\s*{key}:) .*$', rf'\1 {value}', entry, count=1, flags=re.MULTILINE)
        text = head + entry
    collection.metafile.write_text(text, encoding='utf-8')
    return changed
