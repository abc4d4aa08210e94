"""Files from the browser: looked at before they are decoded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.inference import read_image

#: Formats by Pillow's names; browsers show these.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')


@dataclass(frozen=True)
class UploadLimits:
    """What an upload may be.

    Attributes:
        megabytes (float): Size of the file. Defaults to 20.
        megapixels (float): Width times height, in millions. Defaults to 24.
        min_side (int): Shorter side in pixels. Defaults to 32, the coarsest stride.
    """

    megabytes: float = 20
    megapixels: float = 24
    min_side: int = 32


def read_upload(path: str | Path, limits: UploadLimits) -> np.ndarray:
    """Decode an upload.

    Args:
        path (str | Path): The file; its name says nothing about what it is.
        limits (UploadLimits): What is accepted.

    Returns:
        np.ndarray: BGR uint8, (H, W, 3).

    Raises:
        UserError: It is too large, too small, no image of ``FORMATS``, or broken.
    """
    path = Path(path)
    megabytes = path.stat().st_size / 1e6
    if megabytes > limits.megabytes:
        raise UserError(f'this file has {megabytes:.1f} MB; at most {limits.megabytes:g} are taken')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:  # reads the header only
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f'this image has more than {limits.megapixels:g} megapixels') from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f'this file is no image that can be read; {", ".join(FORMATS)} are'
        ) from error
    if width * height > limits.megapixels * 1e6:
        raise UserError(
            f'this image has {width}×{height} px; at most {limits.megapixels:g} megapixels pass'
        )
    if min(width, height) < limits.min_side:
        raise UserError(
            f'this image has {width}×{height} px; each side needs at least {limits.min_side}'
        )
    try:
        return read_image(path)
    except UserError as error:
        raise UserError('this image is damaged, it cannot be decoded to its end') from error
