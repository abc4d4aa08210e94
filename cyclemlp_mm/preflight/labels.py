"""Label images of segmentation: their values, sizes and kinds, and what becomes of each value."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cyclemlp_mm.datasets.check_labels import IGNORE_INDEX as IGNORED
from cyclemlp_mm.datasets.image_files import BadImageError, read_facts
from cyclemlp_mm.datasets.load_labels import LoadCheckedLabels, label_step, stored_labels
from cyclemlp_mm.errors import count, some

from .files import in_parallel, sample
from .findings import Report

#: A larger part of ignored pixels than this is a warning.
MOST_IGNORED = 0.1
_BINARY = {0, IGNORED}
_BACKGROUND = ('background', '_background_', 'bg', 'hintergrund', 'unlabeled', 'unlabelled')


def check_labels(
    report: Report,
    dataset: dict,
    infos: Sequence[dict],
    classes: Sequence[str],
    full: bool,
    is_training: bool = True,
    ignore_index: int = IGNORED,
) -> None:
    """Look at label images as the pipeline of a data set reads them."""
    where = Path(infos[0]['seg_map_path']).parent
    step = label_step(dataset)
    ignored = {ignore_index, _ignore_label(report, dataset)}
    reduces, label_map = False, {}
    if isinstance(step, LoadCheckedLabels):  # others do all by themselves
        reduces = bool(infos[0].get('reduce_zero_label'))
        label_map = infos[0].get('label_map') or {}
        own = step.transform.reduce_zero_label
        if own not in (None, reduces):
            what = f'LoadAnnotations has reduce_zero_label={own}, but the data set {reduces}'
            report.error('pipeline', what, 'Leave it out of LoadAnnotations')
    rule = _rule(len(classes), reduces, ignored - {None}, label_map)
    for looked_at in (sample(infos, full), infos):
        look = partial(_look, step=step)
        looks = in_parallel(look, looked_at, f'labels in {where.name}')
        pixels = sum((counts for counts, _, _ in looks), Counter())
        if set(pixels) != _BINARY or len(looked_at) == len(infos):
            break  # masks of 0 and 255 are too serious to judge by a sample
    looked = count(len(looked_at), 'label image')
    names = [Path(info['seg_map_path']).name for info in looked_at]
    broken = [f'{name} {trouble}' for name, (_, _, trouble) in zip(names, looks) if trouble]
    if broken:
        report.error(where, f'{len(broken)} of {looked} cannot be used: {some(broken, 3)}')
    if not pixels:
        report.note(where, rule)
        return

    # The class of each value; IGNORED, or None for one that names no class.
    used, share = {}, 0.0
    for stored, number in pixels.items():
        value = stored
        if reduces:
            value = IGNORED if stored in _BINARY else stored - 1
        share += number / pixels.total() * (value in ignored)  # not what label_map ignores
        value = label_map.get(value, value)
        used[stored] = value if 0 <= value < len(classes) else None
        if value in ignored:
            used[stored] = IGNORED
    # A class that is taken for 'ignore' shows in nothing else.
    fix = 'If 0 is a class here, give --ignore-label' if reduces and pixels[0] else ''
    level = 'warning' if share > MOST_IGNORED else 'note'
    report.add(level, where, f'{rule}; ignored: {share:.1%} of the pixels looked at', fix)
    stray = sorted(value for value, label in used.items() if label is None)
    unseen = [name for i, name in enumerate(classes) if i not in used.values()]
    if stray:
        first = next(n for n, (counts, _, _) in zip(names, looks) if stray[0] in counts)
        what = f'labels {some(stray, 10)} name no class; with {len(classes)} classes, {rule}'
        fix = 'Is a class name missing, or is one of these to be ignored (--ignore-label)?'
        if stray == [len(classes)] and 0 not in used:
            fix = 'Labels seem to count from 1: leave --ignore-label out (reduce_zero_label=True)'
        report.error(where, f'{what}; e.g. {stray[0]} in {first}', fix)
    elif set(pixels) == _BINARY and unseen:
        those = 'both are' if used[0] == IGNORED else '255 is'
        what = f'the {looked} looked at hold 0 and 255 only, and {those} ignored: {some(unseen)}'
        level = 'error' if is_training or len(unseen) == len(classes) else 'warning'
        fix = 'Write class indices: 1 for 255 (and give --ignore-label 255 with --data)'
        report.add(level, where, f'{what} would never be learned or evaluated', fix)
    elif len(unseen) == len(classes) and not broken:
        found = some(sorted(pixels), 10)
        report.error(where, f'no pixel of any class: {rule}; labels found: {found}')
    elif reduces and classes[-1] in unseen and pixels[0]:
        what = f'0 is in use and ignored, and {len(classes)}, the last class ({classes[-1]!r}), '
        what += f'has no pixel in {looked}: do labels count from 0?'
        if classes[0].lower() in _BACKGROUND:
            what += f' The first class is named {classes[0]!r}'
        fix = 'If so, give --ignore-label 255 with --data, or set reduce_zero_label=False'
        report.warning(where, what, fix)
    if unseen and len(unseen) < len(classes):
        missing = f'no pixel of {count(len(unseen), "class")} in the {looked} looked at'
        report.warning(where, f'{missing}: {some(unseen)}')
    _check_palettes(report, where, names, [colours for _, colours, _ in looks])


def _ignore_label(report: Report, dataset: dict) -> int | None:
    checks = [s for s in dataset.get('pipeline') or () if s.get('type') == 'CheckLabels']
    if len({(s.get('num_classes'), s.get('ignore_label')) for s in checks}) > 1:
        labels = ', then '.join(f'ignore_label={s.get("ignore_label")}' for s in checks)
        what = f'CheckLabels stands in it {len(checks)} times, with different settings ({labels})'
        report.error('pipeline', what, 'Leave all but one out of the config')
    return checks[0].get('ignore_label') if checks else None


def _rule(num_classes: int, reduces: bool, ignored: set[int], label_map: dict) -> str:
    """In words, what the pixels of a label image mean."""
    if label_map:
        kept = sum(new != IGNORED for new in label_map.values())
        return f"{kept} of the data set's {len(label_map)} classes are in use (label_map)"
    if reduces:
        return f'labels 1 to {num_classes} are the classes, 0 and 255 are ignored' + (
            ' (reduce_zero_label=True: 1 is taken off)'
        )
    values = ' and '.join(map(str, sorted(ignored))) + (' are' if len(ignored) > 1 else ' is')
    classes = f'labels 0 to {num_classes - 1} are the classes'
    return f'{classes}, {values} ignored (reduce_zero_label=False)'


def _check_palettes(
    report: Report, where: Path, names: list[str], palettes: list[dict[int, tuple]]
) -> None:
    """Files whose palettes differ: a value may be another class in each."""
    found: dict[int, dict[tuple, str]] = defaultdict(dict)
    for name, palette in zip(names, palettes):
        for value, colour in palette.items():
            found[value].setdefault(colour, name)
    differ = sorted((value, files) for value, files in found.items() if len(files) > 1)
    if differ:
        value, files = differ[0]
        (colour, name), (other, second) = list(files.items())[:2]
        what = f'the palettes of label images differ: {value} is {colour} in {name} and {other} in '
        what += f'{second} ({count(len(differ), "value")} in all); training reads indices'
        report.warning(where, what, 'Convert all of them to one palette')


def _look(info: dict, step: object) -> tuple[Counter[int], dict[int, tuple], str | None]:
    """Pixels and palette colours of each value of a label image, and what is wrong with it."""
    path = info['seg_map_path']
    try:
        values = np.asarray(stored_labels(step, info))
    except BadImageError as error:
        reason = str(error).removeprefix(f'{path} ').removeprefix('cannot be read ')
        return Counter(), {}, f'cannot be read ({reason.strip("()")})'
    if values.ndim != 2:
        trouble = f'is {values.shape}: save label indices in one channel, not colours'
        return Counter(), {}, trouble
    found, numbers = np.unique(values, return_counts=True)
    if (found != found.astype(np.uint8)).any():
        return Counter(), {}, f'has labels up to {found.max():g}; mmseg reads 8 bits, up to 255'
    counts = Counter(dict(zip(found.astype(int).tolist(), numbers.tolist())))
    colours = _palette(path, counts) if isinstance(step, LoadCheckedLabels) else {}
    try:
        facts = read_facts(info['img_path'])
    except BadImageError:
        return counts, colours, None  # another kind of file, or the images' own check reports it
    if values.shape in (facts.stored, facts.turned):
        return counts, colours, None
    (height, width), (rows, columns) = values.shape, facts.turned
    return counts, colours, f'is {width}×{height}, but its image is {columns}×{rows}'


def _palette(path: str, values: Counter[int]) -> dict[int, tuple]:
    """Colours of the values, where the file has a palette."""
    try:
        with Image.open(path) as image:
            palette = image.getpalette() if image.mode == 'P' else None
    except (OSError, ValueError, SyntaxError):
        return {}
    palette = palette or []
    return {v: tuple(palette[3 * v : 3 * v + 3]) for v in values if 3 * v + 3 <= len(palette)}
