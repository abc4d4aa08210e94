"""What an image file is, detected from its content: whole or not, and what makes it unusual.

Decoders are lenient: OpenCV fills the missing part of a truncated JPEG with grey and only prints a
warning. So the ends of files are looked at here, before they are decoded.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.fileio import get
from PIL import Image, UnidentifiedImageError

from cyclemlp_mm.errors import UserError

#: Files that every tool takes for images. What of them cannot be decoded is reported as such.
IMAGE_SUFFIXES = (
    '.jpg',
    '.jpeg',
    '.jpe',
    '.jfif',
    '.png',
    '.bmp',
    '.tif',
    '.tiff',
    '.webp',
    '.gif',
    '.ppm',
    '.pgm',
    '.pbm',
    '.pnm',
    '.jp2',
    '.avif',
    '.heic',
    '.heif',
)
_SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'MPO': ('.jpg', '.jpeg', '.mpo'),
    'PNG': ('.png',),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
    'GIF': ('.gif',),
}
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSING = (5, 6, 7, 8)  # its values under which width and height change places
_DEEP = ('I', 'I;16', 'I;16B', 'I;16L', 'I;16N', 'F')
_BITS_PER_SAMPLE = 258  # TIFF tag
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
        is_deep (bool): Whether a value has more than 8 bits. Defaults to False.
    """

    width: int
    height: int
    is_transposed: bool
    unusual: list[str]
    is_deep: bool = False


def read_file(path: str | Path, backend_args: dict | None = None) -> bytes:
    """Content of a file.

    Args:
        path (str | Path): The file.
        backend_args (dict, optional): mmengine's file backend. Defaults to None.

    Raises:
        BadImageError: It cannot be opened, or is a pipe, a socket or a device: reading one of
            these might never end.
    """
    check_regular(path)
    try:
        return get(str(path), backend_args=backend_args)
    except OSError as error:
        raise BadImageError(f'{path} cannot be opened ({error.strerror or error})') from error


def check_regular(path: str | Path) -> None:
    """Raise a BadImageError for a pipe, a socket or a device; what is not there is let through."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # also addresses of other file backends
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadImageError(f'{path} is not a regular file (a pipe, a socket or a device)')


def split_images(
    files: Iterable[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> tuple[list[Path], list[Path]]:
    """Files that are images by their suffix, and the others; hidden files are in neither.

    Hidden files, such as the ``._NAME.jpg`` of a Mac, are left out by mmengine's listing as well.

    Args:
        files (Iterable[Path]): Paths; folders among them are ignored.
        suffixes (tuple[str]): That images end in. Defaults to ``IMAGE_SUFFIXES``.
    """
    here = sorted(f for f in files if not f.name.startswith('.') and not f.is_dir())
    images = [f for f in here if f.suffix.lower() in suffixes]
    return images, [f for f in here if f.suffix.lower() not in suffixes]


def image_facts(content: bytes, path: str | Path, limit_pixels: bool = True) -> ImageFacts:
    """Look at an image file without decoding its pixels.

    Args:
        content (bytes): The file.
        path (str | Path): Its name, for messages and for the suffix.
        limit_pixels (bool): Whether Pillow's limit holds. Defaults to True.

    Raises:
        BadImageError: Empty, no image, truncated, or larger than Pillow's limit against
            decompression bombs.
    """
    if not content:
        raise BadImageError(f'{path} is empty (0 bytes)')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                'error' if limit_pixels else 'ignore', Image.DecompressionBombWarning
            )
            image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        if content[:4] in (b'II*\0', b'MM\0*'):
            return _facts_by_opencv(content, path)
        raise BadImageError(f'{path} is no image that can be read{_looks_like(content)}') from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if not limit_pixels:
            return _facts_by_opencv(content, path)
        raise BadImageError(f'{path} declares too many pixels: {error}') from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadImageError(f'{path} has a damaged header: {error}') from error
    if _is_truncated(content, image.format):
        raise BadImageError(f'{path} is truncated: its end is missing')
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, EOFError, TypeError):
        orientation = 1  # damaged EXIF; decoders leave it alone as well
    is_deep = _is_deep(image, content)
    unusual = _unusual(image, path, orientation)
    if is_deep:
        unusual.append('more than 8 bits')
    return ImageFacts(*image.size, orientation in _TRANSPOSING, unusual, is_deep)


def _is_deep(image: Image.Image, content: bytes) -> bool:
    """Whether values have more than 8 bits; Pillow says 'RGB' of colours of 16 bits, too."""
    if image.format == 'PNG':
        return content[24] > 8
    if image.format == 'TIFF':
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8
    return image.mode in _DEEP


def _facts_by_opencv(content: bytes, path: str | Path) -> ImageFacts:
    """Facts of what Pillow does not open: TIFFs with colours of 16 bits, very large images."""
    import cv2  # not needed by the bare package

    flag = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise BadImageError(f'{path} is damaged, or of a kind that cannot be read')
    is_deep = pixels.dtype != np.uint8
    return ImageFacts(
        pixels.shape[1], pixels.shape[0], False, ['more than 8 bits'] * is_deep, is_deep
    )


def _unusual(image: Image.Image, path: str | Path, orientation: int) -> list[str]:
    found = []
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES.get(image.format, (suffix,)):
        found.append(f'{image.format} named {suffix or "without a suffix"}')
    if image.mode == 'CMYK':
        found.append('CMYK')
    elif image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        found.append('alpha channel dropped')
    elif image.mode in ('L', '1'):
        found.append('grey')
    if orientation not in (0, 1):
        found.append('EXIF rotation')
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':
        found.append('several frames, the first one taken')
    return found


def _is_truncated(content: bytes, kind: str | None) -> bool:
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
