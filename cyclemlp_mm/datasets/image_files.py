"""What an image file is, told from its bytes: whole or not, and what makes it unusual.

Decoders are lenient: OpenCV fills the missing part of a truncated JPEG with grey and only prints a
warning. So the ends of files are looked at here, before they are decoded.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from cyclemlp_mm.errors import UserError

_SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'), 'MPO': ('.jpg', '.jpeg', '.mpo'), 'PNG': ('.png',),
    'BMP': ('.bmp',), 'TIFF': ('.tif', '.tiff'), 'WEBP': ('.webp',), 'GIF': ('.gif',),
}  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSING = (5, 6, 7, 8)  # its values under which width and height change places
_DEEP = ('I', 'I;16', 'I;16B', 'I;16L', 'F')
#: JPEG markers that stand alone, without a length: TEM, RST0 to RST7, SOI.
_BARE_MARKERS = (0x01, *range(0xD0, 0xD9))


class BadImageError(UserError):
    """An image file cannot be read, or does not fit its annotations."""


class ImageFacts(NamedTuple):
    """What the header of an image file says.

    Attributes:
        width (int): In pixels, as stored.
        height (int): In pixels, as stored.
        is_transposed (bool): Whether EXIF asks for a rotation by a quarter.
        unusual (list[str]): What has to be converted for an 8-bit image of three channels.
    """

    width: int
    height: int
    is_transposed: bool
    unusual: 'list[str]'


def image_facts(content: bytes, path: 'str | Path') -> ImageFacts:
    """Look at an image file without decoding its pixels.

    Args:
        content (bytes): The file.
        path (str | Path): Its name, for messages and for the suffix.

    Raises:
        BadImageError: Empty, no image, truncated, or larger than Pillow's limit against
            decompression bombs.
    """
    if not content:
        raise BadImageError(f'{path} is empty (0 bytes)')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise BadImageError(f'{path} is no image that can be read{_looks_like(content)}') from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f'{path} declares too many pixels: {error}') from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadImageError(f'{path} has a damaged header: {error}') from error
    if _is_truncated(content, image.format):
        raise BadImageError(f'{path} is truncated: its end is missing')
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, EOFError, TypeError):
        orientation = 1  # damaged EXIF; decoders leave it alone as well
    return ImageFacts(
        *image.size, orientation in _TRANSPOSING, _unusual(image, path, orientation)
    )


def _unusual(image: Image.Image, path: 'str | Path', orientation: int) -> 'list[str]':
    found = []
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES.get(image.format, (suffix,)):
        found.append(f'{image.format} named {suffix or "without a suffix"}')
    if image.mode == 'CMYK':
        found.append('CMYK')
    elif image.mode in _DEEP:
        found.append('more than 8 bits')
    elif image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        found.append('alpha channel dropped')
    elif image.mode in ('L', '1'):
        found.append('grey')
    if orientation not in (0, 1):
        found.append('EXIF rotation')
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':
        found.append('several frames, the first one taken')
    return found


def _is_truncated(content: bytes, kind: 'str | None') -> bool:
    if kind == 'PNG':
        return b'IEND' not in content[-4096:]
    if kind in ('JPEG', 'MPO'):
        return content.rfind(b'\xff\xd9') < _start_of_scan(content)
    return False


def _start_of_scan(content: bytes) -> int:
    """Where a JPEG's pixels begin: thumbnails before that have an end marker of their own."""
    at = 2
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            return at
        marker = content[at + 1]
        if marker == 0xDA:
            return at
        if marker == 0xFF or marker in _BARE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(content[at + 2 : at + 4], 'big')
    return len(content)


def _looks_like(content: bytes) -> str:
    head = content[:64].lstrip().lower()
    if head.startswith((b'<!doctype', b'<html')):
        return ' (it is an HTML page)'
    if head.startswith(b'version https://git-lfs'):
        return ' (it is a Git LFS pointer: run `git lfs pull`)'
    if not content.strip(b'\0'):
        return ' (nothing but zero bytes)'
    return ''
