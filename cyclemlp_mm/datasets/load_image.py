"""Loading of images that may be broken or unusual, in place of a pipeline's first step.

Before the first batch, the hook ``SkipBadImages`` calls :func:`check_loader`. Then
:class:`LoadCheckedImage` loads each image in a worker process and notes what was wrong with it; the
notes travel in the batch to the hook, which logs and counts them.
"""

import pickle
import re
from collections.abc import Iterator

import cv2
import numpy as np
from torch.utils.data import DataLoader

from cyclemlp_mm.errors import UserError

from .image_files import (
    DEEP,
    BadImageError,
    ImageFacts,
    check_regular,
    image_facts,
    opencv_pixels,
    read_facts,
    read_file,
)
from .image_notes import CheckedStep, CollateWithNotes
from .load_labels import CheckLabels, LoadCheckedLabels, loads_label_images

#: Longest side of a black image that stands for one too long to be resized.
_STAND_IN = 64
#: An image of more than 8 bits whose 8-bit form ends here or below is reported as too dark.
DARK = 63
DARK_KIND = 'more than 8 bits become nearly black'
#: A half turn, a mirror image or a square: no size tells which way annotations are made.
UNSURE_KIND = 'EXIF rotation that keeps the size'
_EXIF_LEFT_OUT = 'EXIF rotation left out, as in the annotations'


class LoadCheckedImage(CheckedStep):
    """Loads ``results['img_path']`` into ``img`` in place of a pipeline's loading step.

    Skipped are files that are missing, empty, truncated, no image or not regular, whose size is not
    that of their annotations (as stored, or as EXIF turns it), and images so long that resizing
    their long side to ``least_side`` leaves nothing of the short one. Steps that load other files
    than mmcv's does (``.npy``, tifffile, ``color_type='unchanged'``) decode as they do.

    In images of more than 8 bits, ``max_value`` becomes 255, by default 65535. ``limit_pixels``
    says whether Pillow's limit against decompression bombs holds.
    """

    def __init__(
        self,
        transform: object = None,
        is_evaluation: bool = False,
        least_side: float | None = None,
        max_value: float | None = None,
        limit_pixels: bool = True,
    ) -> None:
        if transform is None:
            from mmcv.transforms import LoadImageFromFile  # not needed by the bare package

            transform = LoadImageFromFile()
        super().__init__(transform, is_evaluation)
        self.least_side = least_side
        self.max_value = max_value
        self.limit_pixels = limit_pixels

    def read(self, results: dict) -> tuple[np.ndarray, list[str]]:
        """The image, and what had to be converted; raises a BadImageError if it cannot be used.

        It is uint8 (H, W, 3), BGR, or (H, W) with ``color_type='grayscale'``, or as a step of other
        files makes it, in the orientation that its annotations have: ``height`` and ``width``, or
        ``seg_map_path``, of ``results``.
        """
        step, annotated = self.transform, _annotated_size(results)
        if is_decoded_here(step):
            return self._read_8_bits(str(results['img_path']), annotated)
        paths, name = results['img_path'], type(step).__name__
        for path in paths if isinstance(paths, (list, tuple)) else [paths]:
            check_regular(path)
        try:
            image = step(dict(results))['img']
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise BadImageError(f'{paths} cannot be read by {name} ({error})') from error
        if not isinstance(image, np.ndarray):
            raise BadImageError(f'{paths}: {name} returned {type(image).__name__}')
        _check_size(paths, annotated, image.shape[:2])
        return image, []

    def _read_8_bits(
        self, path: str, annotated: tuple[int, int] | None
    ) -> tuple[np.ndarray, list[str]]:
        color_type = self.transform.color_type
        content = read_file(path, self.transform.backend_args)
        facts = image_facts(content, path, self.limit_pixels)
        renamed = {'EXIF rotation': _exif_kind(path, facts, annotated)}
        if self._is_too_long(facts.stored):
            height, width = facts.stored
            what = f'{path} is too long ({width}×{height})'
            raise BadImageError(f'{what}: Resize leaves nothing of its short side')
        left_out = renamed['EXIF rotation'] == _EXIF_LEFT_OUT
        values = None
        if DEEP in facts.unusual:
            flags = cv2.IMREAD_COLOR if color_type == 'color' else cv2.IMREAD_GRAYSCALE
            values = opencv_pixels(content, flags | cv2.IMREAD_IGNORE_ORIENTATION * left_out)
        if values is None or self.max_value is None:
            backend = self.transform.imdecode_backend
            image = _decode(content, color_type + '_ignore_orientation' * left_out, backend, path)
        else:
            image = np.clip(values * (255 / self.max_value), 0, 255).round().astype(np.uint8)
        if values is not None and _high(image) <= DARK:
            most = 2 ** int(_high(values)).bit_length() - 1
            renamed[DEEP] = f'{DARK_KIND} (image_max_value={most} would make {most} white)'
        converted = [kind for kind in facts.unusual if (kind, color_type) != ('grey', 'grayscale')]
        return image, [renamed.get(kind, kind) for kind in converted]

    def put(self, results: dict, image: np.ndarray) -> dict:
        """Put an image and its shape into the results."""
        results['ori_shape'] = results['img_shape'] = image.shape[:2]
        as_float = getattr(self.transform, 'to_float32', False)
        results['img'] = image.astype(np.float32) if as_float else image
        return results

    def stand_in(self, results: dict, error: BadImageError) -> dict:
        """A black image as large as its annotations say, unless the next step cannot take it."""
        if not is_decoded_here(self.transform):
            fix = 'An evaluation needs all of its images: replace this one, or take it out'
            raise UserError(f'{error}. {fix}') from error
        height, width = size = _annotated_size(results) or (_STAND_IN, _STAND_IN)
        if self._is_too_long(size):
            height, width = min(height, _STAND_IN), min(width, _STAND_IN)
        channels = (3,) if self.transform.color_type == 'color' else ()
        results = self.put(results, np.zeros((height, width, *channels), np.uint8))
        # Nothing may be predicted outside of the annotations' size: masks are pasted into it.
        results['ori_shape'] = size
        return results

    def _is_too_long(self, size: tuple[int, int]) -> bool:
        """Whether mmcv.imrescale rounds the short side to 0 pixels."""
        return self.least_side is not None and 2 * self.least_side * min(size) < max(size)


def read_image(path: str, results: dict) -> tuple[np.ndarray, list[str]]:
    """:meth:`LoadCheckedImage.read` of a file, with ``results`` that annotations say of it."""
    return LoadCheckedImage().read(dict(results, img_path=path))


def _exif_kind(path: str, facts: ImageFacts, annotated: tuple[int, int] | None) -> str:
    """What becomes of an EXIF rotation, if there is one; raises where no orientation fits."""
    if annotated == facts.stored != facts.turned:
        return _EXIF_LEFT_OUT
    _check_size(path, annotated, facts.turned)
    return UNSURE_KIND if annotated and facts.stored == facts.turned else 'EXIF rotation'


def _check_size(path: str, annotated: tuple[int, int] | None, size: tuple[int, int]) -> None:
    if annotated not in (None, size):
        (height, width), (rows, columns) = size, annotated
        what = f'{path} is {width}×{height}, but its annotations are for {columns}×{rows}'
        raise BadImageError(what)


def _annotated_size(results: dict) -> tuple[int, int] | None:
    """(height, width) of an image by its annotations, boxes or a label image; None if unknown."""
    if results.get('seg_map_path') and not results.get('instances'):
        try:
            return read_facts(str(results['seg_map_path'])).stored
        except BadImageError:  # the step that loads the labels reports it
            return None
    height, width = results.get('height'), results.get('width')
    return (int(height), int(width)) if height and width else None


def _high(pixels: np.ndarray) -> float:
    """The largest value but for one pixel in a thousand: a hot pixel makes no image bright."""
    return float(np.quantile(pixels, 0.999, method='lower'))


def _decode(content: bytes, flag: str, backend: str, path: str) -> np.ndarray:
    import mmcv  # not needed by the bare package

    for decoder in (backend, 'pillow'):  # Pillow decodes some kinds that OpenCV does not
        reason = 'the decoder returned nothing'
        try:
            image = mmcv.imfrombytes(content, flag=flag, backend=decoder)
            if image is not None:
                return image
        except (cv2.error, OSError, ValueError, SyntaxError) as error:
            reason = str(error).strip().splitlines()[0]
    raise BadImageError(f'{path} cannot be decoded ({reason})')


def check_loader(
    loader: DataLoader, is_evaluation: bool, max_value: float | None, ignore_index: int
) -> None:
    """Let a data loader skip bad images, and put into its batches what was noted about them.

    The steps that load come into the pipelines of its data set and of those that it wraps. Labels
    that name no class and are not ``ignore_index`` are an error. Doing it twice changes nothing.
    """
    classes = (getattr(loader.dataset, 'metainfo', None) or {}).get('classes')
    check = CheckLabels(len(classes), ignore_index=ignore_index) if classes else None
    pipelines = list(_pipelines(loader.dataset))
    loading = [one for p in pipelines for one in check_steps(p, is_evaluation, max_value, check)]
    if not isinstance(loader.collate_fn, CollateWithNotes):
        loader.collate_fn = CollateWithNotes(loader.collate_fn, loading)


def check_steps(
    steps: list,
    is_evaluation: bool,
    max_value: float | None = None,
    check: CheckLabels | None = None,
) -> list[CheckedStep]:
    """As :func:`check_loader`, for a list of built transforms; returns the steps that load."""
    least_side = resized_to(steps)
    every = [(part, i, step) for part in _step_lists(steps) for i, step in enumerate(part)]
    if any(isinstance(step, CheckLabels) for _, _, step in every):
        check = None
    for part, i, step in every:
        if isinstance(step, CheckedStep):
            continue
        if re.match(r'Load(?!.*NDArray).*Image', type(step).__name__):  # the toolboxes' names
            part[i] = LoadCheckedImage(step, is_evaluation, least_side, max_value)
        elif loads_label_images(step):
            part[i] = LoadCheckedLabels(step, is_evaluation, check)
    return [part[i] for part, i, _ in every if isinstance(part[i], CheckedStep)]


def is_decoded_here(step: object) -> bool:
    """Whether :class:`LoadCheckedImage` decodes in place of a step: mmcv's, for 8-bit images."""
    return (
        type(step).__name__ == 'LoadImageFromFile'
        and step.color_type in ('color', 'grayscale')
        and step.imdecode_backend != 'tifffile'  # returns what is stored, of any depth
    )


def image_loader(dataset: object) -> LoadCheckedImage | None:
    """What loads a data set's images, after :func:`check_loader`; None for others."""
    steps = (step for part in _pipelines(dataset) for step in part)
    return next((step for step in steps if isinstance(step, LoadCheckedImage)), None)


def resized_to(steps: list) -> float | None:
    """The smallest long side that built transforms resize images to, keeping their ratio."""
    found = []
    for step in (step for part in _step_lists(steps) for step in part):
        scales = getattr(step, 'scales', None) or [getattr(step, 'scale', None)]
        resize = getattr(step, 'resize', step)  # of RandomResize and RandomChoiceResize
        if getattr(resize, 'keep_ratio', False) and None not in scales:
            ratio = min(getattr(step, 'ratio_range', None) or (1,))
            found += [np.max(np.atleast_1d(scale), axis=-1).min() * ratio for scale in scales]
    return min(found, default=None)


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
    """RGB uint8 (H, W, 3) to be looked at, of an image (H, W) or (H, W, C), BGR, of a pipeline.

    Other types than uint8 are stretched from least to largest value, except where all are in 0..255
    and some are above 1.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255 or high <= 1:
            image = (image.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
        image = image.round().astype(np.uint8)
    return image[..., ::-1]
