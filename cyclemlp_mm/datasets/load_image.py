"""Loading of images that may be broken or unusual, in the place of ``LoadImageFromFile``."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.fileio import get

from cyclemlp_mm.errors import UserError

from .image_files import BadImageError, ImageFacts, image_facts
from .image_notes import CONVERTED, SKIPPED, leave_note
from .load_labels import UNREADABLE, LoadCheckedLabels

#: So many images in a row that cannot be read are no accident, but a wrong path or a lost disk.
MOST_IN_A_ROW = 50
#: Longest side of a black image that stands for one too long to be resized.
_STAND_IN = 64


class LoadCheckedImage:
    """``LoadImageFromFile`` that skips what cannot be read, and notes it.

    An image is skipped where the file is missing, empty, truncated or no image, and where its size
    is neither that of its annotations nor, turned as EXIF says, would be; also where it is so long
    that resizing it would leave nothing of its short side. Everything else becomes
    an 8-bit image of three channels: CMYK, 16 bits, alpha, grey, a wrong suffix. EXIF rotation is
    applied, except where annotations were made without.

    In training, a skipped image is replaced by a random other one (what mmengine's data sets do
    when a transform returns None). In evaluation it must count: it becomes a black image; where its
    labels cannot be read, no pixel of it can.

    Args:
        transform (LoadImageFromFile): The transform to stand for.
        is_evaluation (bool): See above.
        scales (Sequence[tuple[int, int]]): Of :func:`resize_scales`. Defaults to ().
    """

    def __init__(
        self, transform: object, is_evaluation: bool, scales: 'Sequence[tuple[int, int]]' = ()
    ) -> None:
        self.transform = transform
        self.is_evaluation = is_evaluation
        self.scales = scales
        self._in_a_row = 0

    def __call__(self, results: dict) -> 'dict | None':
        """Load ``results['img_path']`` into ``img``, uint8 (H, W, 3), BGR.

        Raises:
            UserError: Many images in a row could not be read.
        """
        path = str(results['img_path'])
        try:
            image = self._load(results, path)
        except BadImageError as error:
            leave_note(path, SKIPPED, _without_path(str(error), path))
            self._in_a_row += 1
            if self._in_a_row >= MOST_IN_A_ROW:
                raise UserError(
                    f'{MOST_IN_A_ROW} images in a row could not be read, the last one: {error}. '
                    'Is the data still there? tools/check.py CONFIG looks at it'
                ) from error
            if not self.is_evaluation:
                return None
            height = width = _STAND_IN
            try:
                height, width = _expected_size(results, (height, width))
            except BadImageError:  # the error above: the image may be good, but not its labels
                results[UNREADABLE] = True
            # Annotations are for this size, but an image of it might break the next step as well.
            # Nothing may be predicted outside of it: masks are pasted into its size.
            results['ori_shape'] = height, width
            if _too_long(height, width, self.scales):
                height, width = min(height, _STAND_IN), min(width, _STAND_IN)
            image = np.zeros((height, width, 3), np.uint8)
        else:
            self._in_a_row = 0
            results['ori_shape'] = image.shape[:2]
        if self.transform.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'LoadCheckedImage({self.transform}, is_evaluation={self.is_evaluation})'

    def _load(self, results: dict, path: str) -> np.ndarray:
        image, unusual = read_image(
            path, results, self.transform.imdecode_backend, self.transform.backend_args,
            self.scales,
        )  # fmt: skip
        if unusual:
            leave_note(path, CONVERTED, ', '.join(unusual))
        return image


def read_image(
    path: str, results: dict, backend: str = 'cv2', backend_args: 'dict | None' = None,
    scales: 'Sequence[tuple[int, int]]' = (),
) -> 'tuple[np.ndarray, list[str]]':  # fmt: skip
    """Read an image, in the orientation that its annotations have.

    Args:
        path (str): The file.
        results (dict): What mmengine's data sets know about it; used are ``height`` and ``width``,
            or ``seg_map_path``.
        backend (str): mmcv's decoder. Defaults to 'cv2'.
        backend_args (dict, optional): mmengine's file backend. Defaults to None.
        scales (Sequence[tuple[int, int]]): Of :func:`resize_scales`. Defaults to ().

    Returns:
        tuple[numpy.ndarray, list[str]]: uint8 (H, W, 3), BGR; and what had to be converted.

    Raises:
        BadImageError: It cannot be read, its size is not that of its annotations, or it is too
            long for one of the scales.
    """
    content = _read(path, backend_args)
    facts = image_facts(content, path)
    flag = _orientation_flag(results, facts, path)
    scale = _too_long(facts.height, facts.width, scales)
    if scale:
        raise BadImageError(
            f'{path} is too long ({facts.width}×{facts.height}): at the scale '
            f'{scale[0]}×{scale[1]} of the pipeline, nothing is left of its short side'
        )
    return _decode(content, flag, backend, path), facts.unusual


def resize_scales(steps: 'Sequence') -> 'list[tuple[int, int]]':
    """The smallest scales that the steps of a pipeline resize images to, keeping their ratio.

    Args:
        steps (Sequence): Transforms, or their configs. Of random ones, the smallest scale counts.
    """
    found = []
    for step in steps:
        if isinstance(step, (list, tuple)):  # one branch of a RandomChoice
            found += resize_scales(step)
            continue
        found += resize_scales(_setting(step, 'transforms') or ())
        inner = _setting(step, 'resize')
        keeps = _setting(step, 'keep_ratio', _setting(inner, 'keep_ratio'))
        scale = _setting(step, 'scale')
        scales = _setting(step, 'scales') or [(scale, scale) if isinstance(scale, int) else scale]
        if keeps and _are_pairs(scales):
            least = min(_setting(step, 'ratio_range') or (1,))
            found.append(tuple(int(min(sides) * least) for sides in zip(*scales)))
        elif keeps and _are_pairs(scales[0]):  # RandomResize between two scales
            found.append(tuple(min(sides) for sides in zip(*scales[0])))
    return found


def check_images(dataset: object, is_evaluation: bool) -> int:
    """Put :class:`LoadCheckedImage` into the pipelines of a data set and of those it wraps.

    Labels of segmentation are loaded by :class:`.load_labels.LoadCheckedLabels`.

    Args:
        dataset (Dataset): Its pipelines are changed in place.
        is_evaluation (bool): See :class:`LoadCheckedImage`.

    Returns:
        int: How many transforms were replaced; those with settings that we do not know stay.
    """
    count = 0
    for steps in _pipelines(dataset):
        scales = resize_scales(steps)
        for i, step in enumerate(steps):
            if type(step).__name__ == 'LoadImageFromFile' and step.color_type == 'color':
                steps[i] = LoadCheckedImage(step, is_evaluation, scales)
                count += 1
            elif type(step).__module__.startswith('mmseg') and hasattr(step, 'reduce_zero_label'):
                steps[i] = LoadCheckedLabels(step)
    return count


def _pipelines(dataset: object) -> 'Iterator[list]':
    for name in ('_dataset', 'dataset'):
        if hasattr(dataset, name):
            yield from _pipelines(getattr(dataset, name))
    for inner in getattr(dataset, 'datasets', ()):
        yield from _pipelines(inner)
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if isinstance(steps, list):
        yield steps


def _setting(step: object, name: str, otherwise: object = None) -> object:
    """A setting of a transform, or of its config."""
    return step.get(name, otherwise) if isinstance(step, dict) else getattr(step, name, otherwise)


def _are_pairs(scales: object) -> bool:
    return isinstance(scales, (list, tuple)) and all(
        isinstance(scale, (list, tuple)) and len(scale) == 2
        and all(isinstance(side, (int, float)) for side in scale)
        for scale in scales
    )  # fmt: skip


def _too_long(
    height: int, width: int, scales: 'Sequence[tuple[int, int]]'
) -> 'tuple[int, int] | None':
    """The first scale at which a side is rounded to 0 pixels, as mmcv.imrescale rounds."""
    short, long = sorted((height, width))
    for scale in scales:
        factor = min(max(scale) / long, min(scale) / short)
        if int(short * factor + 0.5) < 1:
            return scale
    return None


def _read(path: str, backend_args: 'dict | None') -> bytes:
    try:
        return get(path, backend_args=backend_args)
    except OSError as error:
        raise BadImageError(f'{path} cannot be opened ({error.strerror or error})') from error


def _decode(content: bytes, flag: str, backend: str, path: str) -> np.ndarray:
    import cv2
    import mmcv  # not needed by the bare package

    for decoder in (backend, 'pillow'):  # Pillow knows some kinds that OpenCV does not
        try:
            image = mmcv.imfrombytes(content, flag=flag, backend=decoder)
        except (cv2.error, OSError, ValueError, SyntaxError) as error:
            reason = str(error).strip().splitlines()[0]
        else:
            if image is not None:
                return image
            reason = 'the decoder returned nothing'
    raise BadImageError(f'{path} cannot be decoded ({reason})')


def _orientation_flag(results: dict, facts: ImageFacts, path: str) -> str:
    """mmcv's flag under which the image has its annotations' size."""
    stored = (facts.height, facts.width)
    shown = stored[::-1] if facts.is_transposed else stored
    expected = _expected_size(results, shown)
    if expected == shown:
        return 'color'
    if expected == stored:
        return 'color_ignore_orientation'
    raise BadImageError(
        f'{path} is {shown[1]}×{shown[0]}, but its annotations are for {expected[1]}×{expected[0]}'
    )


def _expected_size(results: dict, otherwise: 'tuple[int, int]') -> 'tuple[int, int]':
    """(height, width) that the annotations are for, of boxes or of a label image."""
    if results.get('seg_map_path') and not results.get('instances'):
        label_path = str(results['seg_map_path'])
        facts = image_facts(_read(label_path, None), label_path)
        return facts.height, facts.width
    height, width = results.get('height'), results.get('width')
    return (int(height), int(width)) if height and width else otherwise


def _without_path(message: str, path: str) -> str:
    return message.removeprefix(f'{path} ') if Path(path).name in message else message
