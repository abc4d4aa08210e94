"""Files from the browser: checked before they are decoded."""

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
    """Largest file in MB, most megapixels, and the shorter side's fewest pixels (a stride)."""

    megabytes: float = 20
    megapixels: float = 24
    min_side: int = 32


def read_upload(path: str | Path, limits: UploadLimits) -> np.ndarray:
    """Decode an upload, whatever its name, to BGR uint8, (H, W, 3); raises a UserError."""
    megabytes = Path(path).stat().st_size / 1e6
    if megabytes > limits.megabytes:
        raise UserError(f'This file has {megabytes:.1f} MB; at most {limits.megabytes:g} are taken')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:  # reads the header only
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f'This image has more than {limits.megapixels:g} megapixels') from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f'Cannot read this file. Supported: {", ".join(FORMATS)}') from error
    size = f'This image has {width}×{height} px'
    if width * height > limits.megapixels * 1e6:
        raise UserError(f'{size}; at most {limits.megapixels:g} megapixels are taken')
    if min(width, height) < limits.min_side:
        raise UserError(f'{size}; each side needs at least {limits.min_side}')
    try:
        return read_image(path)
    except UserError as error:
        raise UserError('This image is damaged: it cannot be decoded to its end') from error
