"""COCO annotation files: read once however often they are asked for, and let go of before training.

COCO's own training file is 448 MB of text, gigabytes as Python objects, and takes seconds to read.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cyclemlp_mm.errors import UserError

_LISTS = ('images', 'annotations', 'categories')
#: What :func:`annotations_kept` keeps, by file and state of it; None outside of it.
_kept: dict[tuple, dict] | None = None


@contextmanager
def annotations_kept() -> Iterator[None]:
    """Inside, an annotation file is read once; at the end, nothing of it is kept.

    Python's collector of cycles is paused: JSON has none, and to look for some among millions of
    objects again and again takes longer than to read them.
    """
    global _kept
    if _kept is not None:  # an outer one lets go
        yield
        return
    was_enabled = gc.isenabled()
    gc.disable()
    _kept = {}
    try:
        yield
    finally:
        _kept = None
        if was_enabled:
            gc.enable()


def read_coco(ann_file: Path) -> dict:
    """What an annotation file holds; its lists may hold anything.

    Args:
        ann_file (Path): The file. Inside of :func:`annotations_kept`, it is read again only if it
            was written since.

    Returns:
        dict: With the lists 'images', 'annotations' and 'categories'. Not to be changed.

    Raises:
        UserError: It is no JSON, or lacks a list.
        OSError: It cannot be read.
    """
    state = ann_file.stat()
    key = (ann_file.resolve(), state.st_mtime_ns, state.st_size)
    if _kept is not None and key in _kept:
        return _kept[key]
    with annotations_kept():
        content = _parse(ann_file)
    if _kept is not None:
        _kept[key] = content
    return content


def _parse(ann_file: Path) -> dict:
    try:
        content = json.loads(ann_file.read_bytes())  # UTF-8, also with a mark, 16 or 32
    except UnicodeDecodeError as error:
        raise UserError(f'{ann_file} is not in UTF-8: save it as UTF-8 ({error})') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{ann_file} is no JSON: {error}') from error
    if isinstance(content, dict):
        content.setdefault('annotations', [])  # COCO's lists of test images have none
    lacking = [k for k in _LISTS if not isinstance(content, dict) or k not in content]
    if lacking:
        raise UserError(f'{ann_file} is no COCO annotation file: it lacks {lacking}')
    for key in _LISTS:
        if not isinstance(content[key], list):
            raise UserError(f'{ann_file}: its "{key}" is no list, but {str(content[key])[:40]}')
    return content


def category_names(ann_file: Path, needs_masks: bool) -> dict[int, str]:
    """Names of an annotation file's categories, by their ids, in the order of the file.

    Args:
        ann_file (Path): The file.
        needs_masks (bool): Whether its annotations have to have masks.

    Raises:
        UserError: As :func:`read_coco`; categories without id or name, or double ones; none of the
            annotations has a mask, and masks are needed.
        OSError: It cannot be read.
    """
    content = read_coco(ann_file)
    try:
        categories = {category['id']: category['name'] for category in content['categories']}
        are_named = all(isinstance(name, str) for name in categories.values())
    except (KeyError, TypeError):
        are_named = False
    if not are_named:
        raise UserError(f'{ann_file}: each of its categories needs an "id" and a "name" (a text)')
    if not categories:
        raise UserError(f'{ann_file} has no categories')
    if len(set(categories.values())) != len(content['categories']):
        raise UserError(f'{ann_file}: category ids or names are double: {content["categories"]}')
    masks = (ann.get('segmentation') for ann in content['annotations'] if isinstance(ann, dict))
    if needs_masks and content['annotations'] and not any(masks):
        raise UserError(
            f'{ann_file} has boxes but no "segmentation": a mask head needs masks; take a '
            'RetinaNet config'
        )
    return categories
