"""Loading of images that may be broken or unusual, in place of a pipeline's first step.

Before the first batch, the hook ``SkipBadImages`` calls :func:`check_loader`. Then
:class:`LoadCheckedImage` loads each image in a worker process and notes what was wrong with it; the
notes travel in the batch to the hook, which logs and counts them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import DataLoader

from cyclemlp_mm.errors import UserError

from .check_labels import IGNORE_INDEX, CheckLabels
from .image_files import BadImageError, ImageFacts, check_regular, image_facts, read_file
from .image_notes import CollateWithNotes, NotingStep
from .load_labels import LoadCheckedLabels, loads_label_images

#: Longest side of a black image that stands for one too long to be resized.
_STAND_IN = 64
#: An image of more than 8 bits whose 8-bit form ends here or below is reported as too dark.
DARK = 63
DARK_KIND = 'more than 8 bits become nearly black'
#: A half turn, a mirror image or a square: no size tells which way annotations are made.
UNSURE_KIND = 'EXIF rotation that keeps the size'
_EXIF_LEFT_OUT = 'EXIF rotation left out, as in the annotations'


class LoadCheckedImage(NotingStep):
    """Stands for a pipeline's loading step: skips what cannot be read, and notes it.

    An image is skipped where the file is missing, empty, truncated, not an image or not a regular
    file, and where its size is neither that of its annotations nor, turned as EXIF says, would be;
    also where it is so long that resizing it would leave nothing of its short side. Of mmcv's
    ``LoadImageFromFile``, everything else becomes an 8-bit image of three channels (or one, with
    ``color_type='grayscale'``): CMYK, 16 bits, alpha, grey, a wrong suffix. EXIF rotation is
    applied, except where annotations were made without. Other loading steps (``.npy``, tifffile,
    ``color_type='unchanged'``) decode as they do, and only what they cannot read is handled here.

    In training, a skipped image is replaced by a random other one (what mmengine's data sets do
    when a transform returns None). In evaluation it must count: it becomes a black image.

    Args:
        transform (BaseTransform): The transform to stand for.
        is_evaluation (bool): See above.
        scales (Sequence[tuple[int, int]]): Of :func:`resize_scales`. Defaults to ().
        max_value (float, optional): Value of images of more than 8 bits that becomes 255, see
            :func:`read_image`. Defaults to None.
        labels_are_images (bool): Whether ``seg_map_path`` names an image, whose size must be that
            of the image. Defaults to True.
    """

    def __init__(
        self,
        transform: object,
        is_evaluation: bool,
        scales: Sequence[tuple[int, int]] = (),
        max_value: float | None = None,
        labels_are_images: bool = True,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.is_evaluation = is_evaluation
        self.scales = scales
        self.max_value = max_value
        self.labels_are_images = labels_are_images
        self.limit_pixels = True

    def __call__(self, results: dict) -> dict | None:
        """Load ``results['img_path']`` into ``img``, uint8 (H, W, 3), BGR; other loaders: theirs.

        Raises:
            UserError: Many images in a row could not be read, or one that no black image can stand
                for, since the loading step decides how many channels it has.
        """
        path = str(results['img_path'])
        try:
            image, converted = self.read(results)
        except BadImageError as error:
            self.note_skipped(path, error)
            if not self.is_evaluation:
                return None
            image = self._black(results, error)
        else:
            self.note_read(path, converted)
            results['ori_shape'] = image.shape[:2]
        if getattr(self.transform, 'to_float32', False):
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = image.shape[:2]
        return results

    def read(self, results: dict) -> tuple[np.ndarray, list[str]]:
        """The image of ``results['img_path']``, and what had to be converted.

        Raises:
            BadImageError: It cannot be used; says why.
        """
        step, known = self.transform, dict(results)
        if not self.labels_are_images:
            known.pop('seg_map_path', None)
        if is_decoded_here(step):
            return read_image(
                str(results['img_path']),
                known,
                step.imdecode_backend,
                step.backend_args,
                self.scales,
                step.color_type,
                self.max_value,
                self.limit_pixels,
            )
        paths, name = known['img_path'], type(step).__name__
        for path in paths if isinstance(paths, (list, tuple)) else [paths]:
            check_regular(path)
        try:
            image = step(known)['img']
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BadImageError(f'{paths} cannot be read by {name} ({reason})') from error
        if not isinstance(image, np.ndarray):
            raise BadImageError(f'{paths}: {name} returned {type(image).__name__}')
        _check_size(paths, _annotated_size(known), image.shape[:2])
        return image, []

    def _black(self, results: dict, error: BadImageError) -> np.ndarray:
        """A black image as large as its annotations say, unless the next step cannot take it."""
        if not is_decoded_here(self.transform):
            raise UserError(
                f'{error}. An evaluation needs all of its images: replace this one, or take it out'
            ) from error
        height, width = _annotated_size(results) or (_STAND_IN, _STAND_IN)
        # Nothing may be predicted outside of the annotations' size: masks are pasted into it.
        results['ori_shape'] = height, width
        if _too_long(height, width, self.scales):
            height, width = min(height, _STAND_IN), min(width, _STAND_IN)
        channels = (3,) if self.transform.color_type == 'color' else ()
        return np.zeros((height, width, *channels), np.uint8)

    def __repr__(self) -> str:
        return f'LoadCheckedImage({self.transform}, is_evaluation={self.is_evaluation})'


def read_image(
    path: str,
    results: dict,
    backend: str = 'cv2',
    backend_args: dict | None = None,
    scales: Sequence[tuple[int, int]] = (),
    color_type: str = 'color',
    max_value: float | None = None,
    limit_pixels: bool = True,
) -> tuple[np.ndarray, list[str]]:
    """Read an image, in the orientation that its annotations have.

    Args:
        path (str): The file.
        results (dict): What mmengine's data sets know about it; used are ``height`` and ``width``,
            or ``seg_map_path``.
        backend (str): mmcv's decoder. Defaults to 'cv2'.
        backend_args (dict, optional): mmengine's file backend. Defaults to None.
        scales (Sequence[tuple[int, int]]): Of :func:`resize_scales`. Defaults to ().
        color_type (str): 'color' or 'grayscale'. Defaults to 'color'.
        max_value (float, optional): Of images of more than 8 bits: the value that becomes 255.
            Defaults to None: the largest that 16 bits can hold, 65535.
        limit_pixels (bool): Whether Pillow's limit against decompression bombs holds. Defaults to
            True.

    Returns:
        tuple[numpy.ndarray, list[str]]: uint8 (H, W, 3), BGR, or (H, W) where grey is asked for;
        and what had to be converted.

    Raises:
        BadImageError: It cannot be read, its size is not that of its annotations, or it is too
            long for one of the scales.
    """
    content = read_file(path, backend_args)
    facts = image_facts(content, path, limit_pixels)
    exif_kind = _exif_kind(path, facts, _annotated_size(results))
    scale = _too_long(facts.height, facts.width, scales)
    if scale:
        raise BadImageError(
            f'{path} is too long ({facts.width}×{facts.height}): at the scale '
            f'{scale[0]}×{scale[1]} of the pipeline, nothing is left of its short side'
        )
    flag = color_type + '_ignore_orientation' * (exif_kind == _EXIF_LEFT_OUT)
    renamed = {'EXIF rotation': exif_kind}
    values = _deep_values(content, flag) if facts.is_deep else None
    if values is None or max_value is None:
        image = _decode(content, flag, backend, path)
    else:
        image = np.clip(values * (255 / max_value), 0, 255).round().astype(np.uint8)
    if values is not None and _high(image) <= DARK:
        renamed['more than 8 bits'] = (
            f'{DARK_KIND} ({values.min():g} to {_high(values):g} are {image.min()} to '
            f'{_high(image):g} of 255; image_max_value='
            f'{2 ** int(_high(values)).bit_length() - 1} would use all of them)'
        )
    converted = [kind for kind in facts.unusual if (kind, color_type) != ('grey', 'grayscale')]
    return image, [renamed.get(kind, kind) for kind in converted]


def _exif_kind(path: str, facts: ImageFacts, annotated: tuple[int, int] | None) -> str:
    """What becomes of an EXIF rotation, if there is one; raises where no orientation fits."""
    stored = facts.height, facts.width
    turned = stored[::-1] if facts.is_transposed else stored
    if annotated == stored != turned:
        return _EXIF_LEFT_OUT
    _check_size(path, annotated, turned)
    return UNSURE_KIND if annotated and stored == turned else 'EXIF rotation'


def _check_size(path: str, annotated: tuple[int, int] | None, size: tuple[int, int]) -> None:
    if annotated not in (None, size):
        raise BadImageError(
            f'{path} is {size[1]}×{size[0]}, but its annotations are for '
            f'{annotated[1]}×{annotated[0]}'
        )


def _annotated_size(results: dict) -> tuple[int, int] | None:
    """(height, width) of an image by its annotations, boxes or a label image; None if unknown."""
    if results.get('seg_map_path') and not results.get('instances'):
        label_path = str(results['seg_map_path'])
        try:
            facts = image_facts(read_file(label_path), label_path)
        except BadImageError:  # the step that loads the labels reports it
            return None
        return facts.height, facts.width
    height, width = results.get('height'), results.get('width')
    return (int(height), int(width)) if height and width else None


def _high(pixels: np.ndarray) -> float:
    """The largest value but for one pixel in a thousand: a hot pixel makes no image bright."""
    return float(np.quantile(pixels, 0.999, method='lower'))


def _deep_values(content: bytes, flag: str) -> np.ndarray | None:
    """Pixels as stored, with more than 8 bits; None where OpenCV cannot decode them."""
    import cv2  # not needed by the bare package

    code = cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_COLOR if flag.startswith('color') else 0)
    if flag.endswith('ignore_orientation'):
        code |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), code)
    except cv2.error:
        return None


def _decode(content: bytes, flag: str, backend: str, path: str) -> np.ndarray:
    import cv2
    import mmcv  # not needed by the bare package

    for decoder in (backend, 'pillow'):  # Pillow decodes some kinds that OpenCV does not
        try:
            image = mmcv.imfrombytes(content, flag=flag, backend=decoder)
        except (cv2.error, OSError, ValueError, SyntaxError) as error:
            reason = str(error).strip().splitlines()[0]
        else:
            if image is not None:
                return image
            reason = 'the decoder returned nothing'
    raise BadImageError(f'{path} cannot be decoded ({reason})')


def _too_long(height: int, width: int, scales: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The first scale at which a side is rounded to 0 pixels, as mmcv.imrescale rounds."""
    short, long = sorted((height, width))
    for scale in scales:
        factor = min(max(scale) / long, min(scale) / short)
        if int(short * factor + 0.5) < 1:
            return scale
    return None


def check_loader(
    loader: DataLoader, is_evaluation: bool, max_value: float | None, ignore_index: int
) -> None:
    """Let a data loader skip bad images, and put into its batches what was noted about them.

    Args:
        loader (DataLoader): Changed in place; doing it twice changes nothing.
        is_evaluation (bool): See :class:`LoadCheckedImage`.
        max_value (float, optional): See :class:`LoadCheckedImage`.
        ignore_index (int): Label that the loss or the metric leaves out.
    """
    steps = check_images(loader.dataset, is_evaluation, max_value, ignore_index)
    if not isinstance(loader.collate_fn, CollateWithNotes):
        loader.collate_fn = CollateWithNotes(loader.collate_fn, steps)


def check_images(
    dataset: object,
    is_evaluation: bool,
    max_value: float | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> list[NotingStep]:
    """Put :class:`LoadCheckedImage` into the pipelines of a data set and of those it wraps.

    Labels of segmentation are loaded by :class:`.load_labels.LoadCheckedLabels`, which stops on
    those that name no class of the data set. Arguments as of :func:`check_loader`.

    Returns:
        list[NotingStep]: The loading steps.
    """
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    check = CheckLabels(len(classes), ignore_index=ignore_index) if classes else None
    return [
        loader
        for steps in _pipelines(dataset)
        for loader in check_steps(steps, is_evaluation, max_value, check)
    ]


def check_steps(
    steps: list,
    is_evaluation: bool,
    max_value: float | None = None,
    check: CheckLabels | None = None,
) -> list[NotingStep]:
    """As :func:`check_images`, for a list of built transforms, changed in place."""
    scales = resize_scales(steps)
    every = [(part, i, step) for part in _step_lists(steps) for i, step in enumerate(part)]
    labels_are_images = any(loads_label_images(step) for _, _, step in every)
    if any(isinstance(step, CheckLabels) for _, _, step in every):
        check = None
    for part, i, step in every:
        if loads_images(step):
            part[i] = LoadCheckedImage(step, is_evaluation, scales, max_value, labels_are_images)
        elif loads_label_images(step) and not isinstance(step, LoadCheckedLabels):
            part[i] = LoadCheckedLabels(step, is_evaluation, check)
    return [part[i] for part, i, _ in every if isinstance(part[i], NotingStep)]


def loads_images(step: object) -> bool:
    """Whether a transform reads ``img_path``, by the names that the toolboxes give such steps."""
    name = type(step).__name__
    return bool(re.match(r'Load.*Image', name)) and not (
        isinstance(step, LoadCheckedImage) or 'NDArray' in name
    )


def is_decoded_here(step: object) -> bool:
    """Whether :func:`read_image` replaces a loading step: mmcv's own, for 8-bit images."""
    return (
        type(step).__name__ == 'LoadImageFromFile'
        and step.color_type in ('color', 'grayscale')
        and step.imdecode_backend != 'tifffile'  # returns what is stored, of any depth
    )


def image_loader(dataset: object) -> LoadCheckedImage | None:
    """What loads a data set's images, once :func:`check_images` went over it; None for others."""
    steps = (step for part in _pipelines(dataset) for step in part)
    return next((step for step in steps if isinstance(step, LoadCheckedImage)), None)


def resize_scales(steps: Sequence) -> list[tuple[int, int]]:
    """The smallest scales that the steps of a pipeline resize images to, keeping their ratio.

    Args:
        steps (Sequence): Built transforms. Of random ones, the smallest scale counts.
    """
    found = []
    for step in (step for part in _step_lists(steps) for step in part):
        scale = getattr(step, 'scale', None)
        is_range = isinstance(scale, (list, tuple)) and isinstance(scale[0], (list, tuple))
        scales = getattr(step, 'scales', None) or (scale if is_range else [scale])
        scales = [(one, one) if isinstance(one, int) else one for one in scales]
        are_pairs = all(isinstance(one, (list, tuple)) and len(one) == 2 for one in scales)
        inner = getattr(step, 'resize', step)  # of RandomResize and RandomChoiceResize
        if getattr(inner, 'keep_ratio', False) and are_pairs:
            least = min(getattr(step, 'ratio_range', None) or (1,))
            found.append(tuple(int(min(sides) * least) for sides in zip(*scales)))
    return found


def _pipelines(dataset: object) -> Iterator[list]:
    """The steps of a data set, and of those that it wraps."""
    inner = [getattr(dataset, name) for name in ('_dataset', 'dataset') if hasattr(dataset, name)]
    for one in [*inner, *getattr(dataset, 'datasets', ())]:
        yield from _pipelines(one)
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', None)
    if isinstance(steps, list):
        yield steps


def _step_lists(steps: list) -> Iterator[list]:
    """A list of steps, and those inside of wrapping steps (TestTimeAug, RandomChoice, …)."""
    yield steps
    for step in steps:
        for name in ('transforms', 'subroutines'):
            inner = getattr(step, name, None)
            for part in inner if isinstance(inner, list) else [inner]:
                part = getattr(part, 'transforms', part)  # of a Compose
                if isinstance(part, list):
                    yield from _step_lists(part)


def as_picture(image: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) to be looked at, of an image as a pipeline loads it.

    Args:
        image (numpy.ndarray): (H, W) or (H, W, C); with three channels or more, the first three
            are taken for BGR. Other types than uint8 are stretched from their least to their
            largest value, except where all are in 0..255 and some are above 1.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255 or high <= 1:
            image = (image.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
        image = image.round().astype(np.uint8)
    return image[..., ::-1]
