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
from PIL.JpegImagePlugin import JpegImageFile

from cyclemlp_mm.errors import UserError

_SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'PNG': ('.png',),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
    'GIF': ('.gif',),
}
_OTHER_SUFFIXES = ('.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.avif', '.heic', '.heif')
#: Files that every tool takes for images. What of them cannot be decoded is reported as such.
IMAGE_SUFFIXES = (*(suffix for kind in _SUFFIXES.values() for suffix in kind), *_OTHER_SUFFIXES)
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSING = (5, 6, 7, 8)  # its values under which width and height change places
_BITS_PER_SAMPLE = 258  # TIFF tag
#: What files that are no images begin with, and what to say about them.
_NO_IMAGES = {
    b'<!doctype': ' (it is an HTML page)',
    b'<html': ' (it is an HTML page)',
    b'version https://git-lfs': ' (it is a Git LFS pointer: run `git lfs pull`)',
    bytes(64): ' (nothing but zero bytes)',
}
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, TypeError)  # what Pillow raises


class BadImageError(UserError):
    """An image file cannot be read, or does not fit its annotations."""


class ImageFacts(NamedTuple):
    """What the header of an image file says.

    Attributes:
        width (int): In pixels, as stored.
        height (int): In pixels, as stored.
        is_transposed (bool): Whether EXIF asks for a rotation by a quarter.
        unusual (list[str]): What has to be converted for an 8-bit image of three channels.
        is_deep (bool): Whether a value has more than 8 bits.
    """

    width: int
    height: int
    is_transposed: bool
    unusual: list[str]
    is_deep: bool


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
        head = content[:64].lstrip().lower()
        kinds = [what for start, what in _NO_IMAGES.items() if head.startswith(start)]
        raise BadImageError(f'{path} cannot be read as an image{"".join(kinds)}') from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if not limit_pixels:
            return _facts_by_opencv(content, path)
        raise BadImageError(f'{path} declares too many pixels: {error}') from error
    except _BROKEN as error:
        raise BadImageError(f'{path} has a damaged header: {error}') from error
    if image.format == 'PNG':
        is_whole, is_deep = b'IEND' in content[-4096:], content[24] > 8
    elif image.format in ('JPEG', 'MPO'):  # thumbnails in the header have an end marker, too
        header = JpegImageFile(io.BytesIO(content)).fp.tell()
        is_whole, is_deep = content.rfind(b'\xff\xd9') >= header, False
    elif image.format == 'TIFF':
        is_whole, is_deep = True, max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8
    else:
        is_whole, is_deep = True, image.mode == 'F' or image.mode.startswith('I')
    if not is_whole:
        raise BadImageError(f'{path} is truncated: its end is missing')
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        orientation = 1  # damaged EXIF; decoders leave it alone as well
    suffix, unusual = Path(path).suffix.lower(), []
    kind = 'JPEG' if image.format == 'MPO' else image.format
    if suffix not in _SUFFIXES.get(kind, (suffix,)) and (image.format, suffix) != ('MPO', '.mpo'):
        unusual.append(f'{image.format} named {suffix or "without a suffix"}')
    if image.mode == 'CMYK':
        unusual.append('CMYK')
    elif image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        unusual.append('alpha channel dropped')
    elif image.mode in ('L', '1'):
        unusual.append('grey')
    if orientation not in (0, 1):
        unusual.append('EXIF rotation')
    if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':
        unusual.append('several frames, the first one taken')
    if is_deep:
        unusual.append('more than 8 bits')
    return ImageFacts(*image.size, orientation in _TRANSPOSING, unusual, is_deep)


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
    unusual = ['more than 8 bits'] * is_deep
    return ImageFacts(pixels.shape[1], pixels.shape[0], False, unusual, is_deep)
