"""Files from the browser: checked before they are decoded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cyclemlp_mm.datasets.load_image import read_image
from cyclemlp_mm.errors import UserError

#: Formats by Pillow's names; browsers show these.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')


@dataclass(frozen=True)
class UploadLimits:
    """Largest file in MB, and most megapixels."""

    megabytes: float = 20
    megapixels: float = 24


def read_upload(path: str | Path, limits: UploadLimits) -> np.ndarray:
    """Decode an upload, whatever its name, to BGR uint8, (H, W, 3); raises a UserError."""
    megabytes = Path(path).stat().st_size / 1e6
    if megabytes > limits.megabytes:
        raise UserError(f'This file has {megabytes:.1f} MB; at most {limits.megabytes:g} are taken')
    try:
        with Image.open(path, formats=FORMATS) as image:  # reads the header only
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f'This image has more than {limits.megapixels:g} megapixels') from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f'Cannot read this file. Supported: {", ".join(FORMATS)}') from error
    if width * height > limits.megapixels * 1e6:
        size = f'This image has {width}×{height} px'
        raise UserError(f'{size}; at most {limits.megapixels:g} megapixels are taken')
    try:
        return read_image(str(path), {})[0]
    except UserError as error:
        raise UserError('This image is damaged: it cannot be decoded to its end') from error
