"""Label images of segmentation: their values, sizes and kinds, and what becomes of each value."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cyclemlp_mm.datasets.check_labels import IGNORE_INDEX as IGNORED
from cyclemlp_mm.datasets.image_files import BadImageError, image_facts, read_file
from cyclemlp_mm.datasets.load_labels import LoadCheckedLabels, label_step, stored_labels

from .files import in_parallel, sample
from .findings import Report, count, some

#: A larger part of ignored pixels than this is a warning.
MOST_IGNORED = 0.1
_BACKGROUND = ('background', '_background_', 'bg', 'hintergrund', 'unlabeled', 'unlabelled')


class _Rule(NamedTuple):
    """What becomes of the values of a label image."""

    num_classes: int
    reduce_zero_label: bool
    ignore_label: int | None
    label_map: dict[int, int] | None
    ignore_index: int = IGNORED

    def class_of(self, value: int) -> int | None:
        """The class of a value; IGNORED, or None for one that names no class."""
        if self.reduce_zero_label:
            value = IGNORED if value in (0, IGNORED) else value - 1
        value = (self.label_map or {}).get(value, value)
        if value in (self.ignore_index, self.ignore_label):
            return IGNORED
        return value if 0 <= value < self.num_classes else None

    def __str__(self) -> str:
        said = explain_labels(
            self.num_classes, self.reduce_zero_label, self.ignore_label, self.ignore_index
        )
        if self.label_map is None:
            return said
        left_out = sorted(old for old, new in self.label_map.items() if new == IGNORED)
        used = len(self.label_map) - len(left_out)
        return (
            f"{used} of the data set's {len(self.label_map)} classes "
            'are in use and numbered again by their names (label_map), the others are ignored'
        )


def explain_labels(
    num_classes: int, reduce_zero_label: bool, ignore_label: int | None, ignore_index: int = IGNORED
) -> str:
    """In words, what the pixels of a label image mean."""
    if reduce_zero_label:
        return (
            f'labels 1 to {num_classes} are the classes, 0 and 255 are ignored '
            '(reduce_zero_label=True: 1 is taken off)'
        )
    ignored = (
        f'{ignore_index} is ignored'
        if ignore_label in (None, ignore_index)
        else f'{ignore_label} and {ignore_index} are ignored'
    )
    return f'labels 0 to {num_classes - 1} are the classes, {ignored} (reduce_zero_label=False)'


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
    step = label_step(dataset)
    rule = _rule(report, dataset, infos[0], len(classes), step)._replace(ignore_index=ignore_index)
    chosen = sample(infos, full)
    seen = _Seen(chosen, step)
    if not full and len(infos) > len(chosen) and _is_binary(seen.pixels):
        seen = _Seen(infos, step)  # too serious to judge by a sample
    where = Path(infos[0]['seg_map_path']).parent
    if seen.unreadable:
        report.error(
            where,
            f'{len(seen.unreadable)} of {count(seen.number, "label image")} cannot '
            f'be used: {some(seen.unreadable, 3)}',
        )
    if not seen.pixels:
        report.note(where, str(rule))
        return
    _check_values(report, where, classes, rule, seen, is_training)
    _check_palettes(report, where, seen)


def _rule(report: Report, dataset: dict, info: dict, num_classes: int, step: object) -> _Rule:
    checks = [s for s in dataset.get('pipeline') or () if s.get('type') == 'CheckLabels']
    if len({(s.get('num_classes'), s.get('ignore_label')) for s in checks}) > 1:
        said = ', then '.join(f'ignore_label={s.get("ignore_label")}' for s in checks)
        report.error(
            'pipeline',
            f'CheckLabels stands in it {len(checks)} times, with different settings '
            f'({said}): what one leaves out, the other takes for a class or for a stray label',
            'Leave all but one out of the config',
        )
    ignore_label = checks[0].get('ignore_label') if checks else None
    if not isinstance(step, LoadCheckedLabels):  # it does all by itself
        return _Rule(num_classes, False, ignore_label, None)
    reduces = bool(info.get('reduce_zero_label'))
    own = step.transform.reduce_zero_label
    if own not in (None, reduces):
        report.error(
            'pipeline',
            f'LoadAnnotations has reduce_zero_label={own}, but the data set '
            f'{reduces}; mmseg stops at its first image then',
            'Leave it out of LoadAnnotations',
        )
    return _Rule(num_classes, reduces, ignore_label, info.get('label_map'))


class _Seen:
    """What was found in label images."""

    def __init__(self, infos: Sequence[dict], step: object) -> None:
        self.number = len(infos)
        self.pixels: Counter[int] = Counter()
        self.first: dict[int, str] = {}
        self.colours: dict[int, dict[tuple, str]] = defaultdict(dict)
        self.unreadable: list[str] = []
        folder = Path(infos[0]['seg_map_path']).parent.name
        looks = in_parallel(partial(_look, step=step), infos, f'labels in {folder}')
        for info, (counts, colours, trouble) in zip(infos, looks):
            name = Path(info['seg_map_path']).name
            if trouble:
                self.unreadable.append(f'{name} {trouble}')
            self.pixels.update(counts)
            for value in counts:
                self.first.setdefault(value, name)
            for value, colour in colours.items():
                self.colours[value].setdefault(colour, name)


def _check_values(
    report: Report, where: Path, classes: Sequence[str], rule: _Rule, seen: _Seen, is_training: bool
) -> None:
    used = {value: rule.class_of(value) for value in seen.pixels}
    stray = sorted(value for value, label in used.items() if label is None)
    unseen = [name for i, name in enumerate(classes) if i not in used.values()]
    looked = count(seen.number, 'label image')
    _note_rule(report, where, rule, seen.pixels, used)
    if stray:
        value = stray[0]
        counts_from_one = stray == [rule.num_classes] and 0 not in used
        report.error(
            where,
            f'labels {some(stray, 10)} name no class; with {len(classes)} classes, {rule}; '
            f'e.g. {value} in {seen.first[value]}',
            'Labels seem to count from 1: leave --ignore-label out, or set reduce_zero_label=True'
            if counts_from_one
            else 'Is a class name missing, or is one of these to be ignored (--ignore-label)?',
        )
    elif _is_binary(seen.pixels) and unseen:
        is_wrong = is_training or len(unseen) == len(classes)
        (report.error if is_wrong else report.warning)(
            where,
            f'the {looked} looked at hold 0 and 255 only, and '
            f'{"both are" if rule.class_of(0) == IGNORED else "255 is"} ignored: '
            f'{some(unseen)} would never be learned or evaluated',
            'Write class indices: 1 for 255 (and give --ignore-label 255 with --data)',
        )
    elif len(unseen) == len(classes) and not seen.unreadable:
        report.error(
            where, f'no pixel of any class: {rule}; labels found: {some(sorted(seen.pixels), 10)}'
        )
    elif rule.reduce_zero_label and classes[-1] in unseen and seen.pixels[0]:
        named = (
            f', and the first class is named {classes[0]!r}'
            if classes[0].lower() in _BACKGROUND
            else ''
        )
        report.warning(
            where,
            f'0 is in use and ignored, and {rule.num_classes}, the last class '
            f'({classes[-1]!r}), has no pixel in {looked}{named}: do labels count from 0? Then '
            'every class is learned under the name of the one before it',
            'With --data, give --ignore-label 255; in a config, set reduce_zero_label=False',
        )
    if unseen and len(unseen) < len(classes):
        report.warning(
            where,
            f'no pixel of {count(len(unseen), "class")} in the {looked} looked at: {some(unseen)}',
        )


def _is_binary(pixels: Counter[int]) -> bool:
    """Whether labels are masks of 0 and 255, as editors of images write them."""
    return set(pixels) == {0, IGNORED}


def _note_rule(
    report: Report, where: Path, rule: _Rule, pixels: Counter[int], used: dict[int, int]
) -> None:
    """Report the rule, and how much is ignored: a class taken for 'ignore' shows in nothing else.

    What a ``label_map`` leaves out is left out on purpose.
    """
    plain = rule._replace(label_map=None, num_classes=IGNORED)
    ignored = sum(n for v, n in pixels.items() if plain.class_of(v) == IGNORED)
    share = ignored / pixels.total()
    hint = (
        'If 0 is a class here, give --ignore-label' if rule.reduce_zero_label and pixels[0] else ''
    )
    add = report.warning if share > MOST_IGNORED else report.note
    add(where, f'{rule}; ignored: {share:.1%} of the pixels looked at', hint)


def _check_palettes(report: Report, where: Path, seen: _Seen) -> None:
    differ = {value: found for value, found in seen.colours.items() if len(found) > 1}
    if differ:
        value, found = next(iter(sorted(differ.items())))
        (colour, name), (other, second) = list(found.items())[:2]
        report.warning(
            where,
            f'the palettes of label images differ: {value} is {colour} in {name} and '
            f'{other} in {second}, so it may be another class there '
            f'({count(len(differ), "value")} in all)',
            'Convert all of them to one palette; training reads the indices and not the colours',
        )


def _look(info: dict, step: object) -> tuple[dict[int, int], dict[int, tuple], str | None]:
    """Pixels and palette colours of each value of a label image, and what is wrong with it."""
    path = info['seg_map_path']
    try:
        values = np.asarray(stored_labels(step, info))
    except BadImageError as error:
        said = str(error).removeprefix(f'{path} ')
        return {}, {}, said if said.startswith('cannot be read') else f'cannot be read ({said})'
    if values.ndim != 2:
        return {}, {}, f'is {values.shape}: save label indices in one channel, not colours'
    found = dict(zip(*(array.tolist() for array in np.unique(values, return_counts=True))))
    if any(value != int(value) or not 0 <= value <= IGNORED for value in found):
        wrong = f'has labels up to {max(found):g}'
        return {}, {}, f'{wrong}; mmseg reads 8 bits, so whole numbers of at most 255'
    found = {int(value): n for value, n in found.items()}
    colours = _palette(path, found) if isinstance(step, LoadCheckedLabels) else {}
    try:
        facts = image_facts(read_file(info['img_path']), info['img_path'])
    except BadImageError:
        return found, colours, None  # another kind of file, or the images' own check reports it
    size = (facts.height, facts.width)
    if values.shape not in (size, size[::-1] if facts.is_transposed else size):
        shown = size[::-1] if facts.is_transposed else size
        wrong = f'is {values.shape[1]}×{values.shape[0]}'
        return (found, colours, f'{wrong}, but its image is {shown[1]}×{shown[0]}')
    return found, colours, None


def _palette(path: str, values: dict[int, int]) -> dict[int, tuple]:
    """Colours of the values, where the file has a palette."""
    try:
        with Image.open(path) as image:
            palette = image.getpalette() if image.mode == 'P' else None
    except (OSError, ValueError, SyntaxError):
        return {}
    palette = palette or []
    return {v: tuple(palette[3 * v : 3 * v + 3]) for v in values if 3 * v + 3 <= len(palette)}
