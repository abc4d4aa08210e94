"""Label images of segmentation: their values, sizes and kinds, and what becomes of each value."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cyclemlp_mm.datasets.image_files import BadImageError, image_facts

from .findings import Report, count, some
from .parallel import in_parallel, sample

IGNORED = 255


def explain_labels(num_classes: int, reduce_zero_label: bool, ignore_label: 'int | None') -> str:
    """In words, what the pixels of a label image mean."""
    if reduce_zero_label:
        return (
            f'labels 1 to {num_classes} are the classes, 0 and 255 are ignored '
            '(reduce_zero_label=True: 1 is taken off)'
        )
    ignored = '255 is ignored' if ignore_label in (None, IGNORED) else \
        f'{ignore_label} and 255 are ignored'  # fmt: skip
    return f'labels 0 to {num_classes - 1} are the classes, {ignored} (reduce_zero_label=False)'


def check_labels(
    report: Report, pairs: 'Sequence[tuple[Path, Path]]', classes: 'Sequence[str]',
    reduce_zero_label: bool, ignore_label: 'int | None', full: bool,
) -> None:  # fmt: skip
    """Look at label images.

    Args:
        report (Report): Gets the findings.
        pairs (Sequence[tuple[Path, Path]]): Images and their label images.
        classes (Sequence[str]): Class names of the config.
        reduce_zero_label (bool): As in the config's data set.
        ignore_label (int, optional): Of ``CheckLabels`` in the pipeline.
        full (bool): All of them, or a sample.
    """
    chosen = sample(pairs, full)
    where = pairs[0][1].parent
    rule = explain_labels(len(classes), reduce_zero_label, ignore_label)
    seen: dict[int, Path] = {}
    pixels: Counter[int] = Counter()
    unreadable, stray = [], {}
    first = 1 if reduce_zero_label else 0
    allowed = {*range(first, first + len(classes)), IGNORED, 0 if reduce_zero_label else IGNORED}
    if ignore_label is not None:
        allowed.add(ignore_label)
    results = in_parallel(_look, chosen, f'labels in {where.name}')
    for (_, label), (counts, trouble) in zip(chosen, results):
        if trouble:
            unreadable.append(f'{label.name} {trouble}')
        pixels.update(counts)
        for value in counts:
            seen.setdefault(value, label)
            if value not in allowed:
                stray.setdefault(value, label)
    _note_rule(report, where, rule, pixels, reduce_zero_label, ignore_label)
    if unreadable:
        report.error(where, f'{len(unreadable)} of {count(len(chosen), "label image")} cannot be '
                            f'used: {some(unreadable, 3)}')  # fmt: skip
    if stray:
        value = min(stray)
        report.error(
            where,
            f'labels {some(sorted(stray), 10)} name no class; with {len(classes)} classes, {rule}; '
            f'e.g. {value} in {stray[value].name}',
            'Is a class name missing, or is one of these to be ignored (--ignore-label)?',
        )
    unseen = [name for i, name in enumerate(classes) if i + first not in seen]
    if unseen and full:
        report.warning(where, f'no pixel of {count(len(unseen), "class")}: {some(unseen)}')
    if len(unseen) == len(classes) and not stray and not unreadable:
        report.error(where, 'no pixel of any class', f'Expected are {rule}')


def _note_rule(
    report: Report, where: Path, rule: str, pixels: 'Counter[int]',
    reduce_zero_label: bool, ignore_label: 'int | None',
) -> None:  # fmt: skip
    """Say the rule, and how much is ignored: a class taken for 'ignore' shows in nothing else."""
    if not pixels:
        report.note(where, rule)
        return
    ignored = {IGNORED, 0 if reduce_zero_label else ignore_label}
    share = sum(pixels[value] for value in ignored) / pixels.total()
    hint = 'If 0 is a class here, give --ignore-label' if reduce_zero_label and pixels[0] else ''
    report.note(where, f'{rule}; ignored: {share:.1%} of the pixels looked at', hint)


def _look(pair: 'tuple[Path, Path]') -> 'tuple[dict[int, int], str | None]':
    """Pixels of each value of a label image, and what is wrong with it."""
    image, label = pair
    try:
        content = label.read_bytes()
        facts = image_facts(content, label)
        with Image.open(label) as opened:
            values = np.asarray(opened)
    except (OSError, SyntaxError, ValueError) as error:
        return {}, f'cannot be read ({str(error).removeprefix(f"{label} ")})'
    if values.ndim != 2:
        return {}, f'is {values.shape}: save label indices in one channel, not colours'
    found = dict(zip(*(array.tolist() for array in np.unique(values, return_counts=True))))
    if max(found) > IGNORED:
        return {}, f'has labels up to {max(found)}; mmseg reads 8 bits, so at most 255'
    try:
        of_image = image_facts(image.read_bytes(), image)
    except (OSError, BadImageError):
        return found, None  # the images' own check says it
    size = (of_image.width, of_image.height)
    shown = size[::-1] if of_image.is_transposed else size
    if (facts.width, facts.height) not in (size, shown):
        return found, f'is {facts.width}×{facts.height}, but its image is {shown[0]}×{shown[1]}'
    return found, None
