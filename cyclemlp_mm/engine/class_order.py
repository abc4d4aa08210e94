"""Class names of checkpoints and data: labels are numbers, and mean what the names' order says."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config

from cyclemlp_mm.errors import UserError

from .config_data import data_sets


def trained_classes(checkpoint: object) -> list[str]:
    """Class names that a checkpoint holds, in the order of its labels; [] where it has none."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if not isinstance(meta, dict):
        return []
    return names_of(meta.get('dataset_meta')) or names_of(
        {'classes': meta.get('CLASSES')}  # of mmdet 2
    )


def names_of(metainfo: object) -> list[str]:
    """Class names of a data set's ``metainfo``; [] where it has none."""
    names = metainfo.get('classes') if isinstance(metainfo, dict) else None
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def take_class_order(cfg: Config, trained: Sequence[str], source: str) -> list[str]:
    """Let data sets that go by name list their classes in the order of a checkpoint.

    Args:
        cfg (Config): Changed in place, where a data set has the checkpoint's names in another
            order.
        trained (Sequence[str]): Class names of the checkpoint, see :func:`trained_classes`.
        source (str): The checkpoint, for the message.

    Returns:
        list[str]: What the user should know; empty where nothing was changed.
    """
    changed = False
    for _, dataset in data_sets(cfg):
        metainfo = dict(dataset.get('metainfo') or {})
        names = names_of(metainfo)
        if dataset.get('type') != 'CheckedCocoDataset' or sorted(names) != sorted(trained):
            continue
        if names == list(trained):
            continue
        palette = metainfo.get('palette')
        if isinstance(palette, (list, tuple)) and len(palette) == len(names):
            metainfo['palette'] = [palette[names.index(name)] for name in trained]
        dataset.metainfo = dict(metainfo, classes=tuple(trained))
        changed = True
    return [f'classes are in the order of {source}: {", ".join(trained)}'] * changed


def require_same_classes(trained: Sequence[str], names: Sequence[str], source: str) -> None:
    """Refuse data whose labels mean other classes than a checkpoint's.

    Args:
        trained (Sequence[str]): Class names of the checkpoint; [] fits all.
        names (Sequence[str]): Class names of the data, likewise.
        source (str): The checkpoint, for the message.

    Raises:
        UserError: They differ, or their order does.
    """
    different = [i for i, pair in enumerate(zip(trained, names)) if pair[0] != pair[1]]
    if not different and (len(trained) == len(names) or not trained or not names):
        return
    kind = 'in another order' if sorted(trained) == sorted(names) else 'others'
    trained, names = ([name[:60] for name in listed] for listed in (trained, names))
    raise UserError(
        f'{source} was trained with the classes {trained}, but the data has {kind}: '
        f'{names}. Labels would not mean the same: take the names and the order of the '
        'training data (categories in the annotation file, classes.txt and its labels, '
        'metainfo.classes)'
    )
