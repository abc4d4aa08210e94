"""What an image file is, detected from its content: whole or not, and what makes it unusual.

Decoders are lenient: OpenCV fills the missing part of a truncated JPEG with grey and only prints a
warning. So the ends of files are looked at here, before they are decoded.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from struct import unpack_from
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.fileio import get
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from cyclemlp_mm.errors import UserError

_SUFFIXES = {
    'JPEG': ('.jpg', '.jpeg', '.jpe', '.jfif'),
    'MPO': ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo'),
    'PNG': ('.png',),
    'BMP': ('.bmp',),
    'TIFF': ('.tif', '.tiff'),
    'WEBP': ('.webp',),
    'GIF': ('.gif',),
    '': ('.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.avif', '.heic', '.heif'),
}
#: Files that every tool takes for images. What of them cannot be decoded is reported as such.
IMAGE_SUFFIXES = tuple(s for kind in _SUFFIXES for s in _SUFFIXES[kind] if kind != 'MPO')
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSING = (5, 6, 7, 8)  # its values under which width and height change places
_BITS_PER_SAMPLE = 258  # TIFF tag
DEEP = 'more than 8 bits'
#: What files that are not images begin with, and what to say about them.
_NO_IMAGES = {
    b'<!doctype': ' (it is an HTML page)',
    b'<html': ' (it is an HTML page)',
    b'version https://git-lfs': ' (it is a Git LFS pointer: run `git lfs pull`)',
    bytes(64): ' (nothing but zero bytes)',
}
#: JPEG segments that leave an image as it is: JFIF, tables, comments. And a frame's beginnings.
_JPEG_TABLES = {0xE0, 0xC4, 0xDB, 0xDD, 0xFE}
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}
_JPEG_SCAN = 0xDA
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, TypeError)  # what Pillow raises


class BadImageError(UserError):
    """An image file cannot be read, or does not fit its annotations."""


class ImageFacts(NamedTuple):
    """What the header of an image file says."""

    stored: tuple[int, int]  # height and width
    turned: tuple[int, int]  # height and width after the rotation that EXIF asks for
    unusual: list[str]  # what has to be converted for an 8-bit image of three channels


def read_file(path: str | Path, backend_args: dict | None = None) -> bytes:
    """Content of a file, by mmengine's file backend; raises a BadImageError if it has none."""
    check_regular(path)
    try:
        return get(str(path), backend_args=backend_args)
    except OSError as error:
        raise BadImageError(f'{path} cannot be opened ({error.strerror or error})') from error


def check_regular(path: str | Path) -> None:
    """Raise a BadImageError for a pipe, a socket or a device: reading one might never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # not there, or the address of another file backend
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadImageError(f'{path} is not a regular file (a pipe, a socket or a device)')


def split_images(
    files: Iterable[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> tuple[list[Path], list[Path]]:
    """Files that are images by their suffix, and the others; no folders and no hidden files."""
    here = sorted(f for f in files if not f.name.startswith('.') and not f.is_dir())
    images = [f for f in here if f.suffix.lower() in suffixes]
    return images, [f for f in here if f.suffix.lower() not in suffixes]


def read_facts(path: str | Path, limit_pixels: bool = True) -> ImageFacts:
    """:func:`image_facts` of a file on the disk."""
    return image_facts(read_file(path), path, limit_pixels)


def image_facts(content: bytes, path: str | Path, limit_pixels: bool = True) -> ImageFacts:
    """Look at the content of an image file without decoding its pixels.

    Raises:
        BadImageError: Empty, no image, truncated, or larger than Pillow's limit against
            decompression bombs.
    """
    if not content:
        raise BadImageError(f'{path} is empty (0 bytes)')
    suffix = os.path.splitext(path)[1].lower()  # Path takes longer, for every image
    if suffix in _SUFFIXES['JPEG'] and (size := _size_of_plain_jpeg(content)):
        return ImageFacts(size, size, [])
    action = 'error' if limit_pixels else 'ignore'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)
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
    kind, mode = image.format, image.mode
    is_whole, is_deep = True, mode == 'F' or mode.startswith('I')
    if kind == 'PNG':
        is_whole, is_deep = b'IEND' in content[-4096:], content[24] > 8
    elif kind in ('JPEG', 'MPO'):  # thumbnails in the header have an end marker, too
        header = image if kind == 'JPEG' else JpegImageFile(io.BytesIO(content))
        is_whole = content.rfind(b'\xff\xd9') >= header.fp.tell()
    elif kind == 'TIFF':
        is_deep = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8
    if not is_whole:
        raise BadImageError(f'{path} is truncated: its end is missing')
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        orientation = 1  # damaged EXIF; decoders leave it alone as well
    has_alpha = mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info
    named = f'{"JPEG" if kind == "MPO" else kind} named {suffix or "without a suffix"}'
    unusual = {
        named: suffix not in _SUFFIXES.get(kind, (suffix,)),
        'CMYK': mode == 'CMYK',
        'alpha channel dropped': has_alpha,
        'grey': mode in ('L', '1') and not has_alpha,
        'EXIF rotation': orientation not in (0, 1),
        'several frames, the first one taken': kind != 'MPO' and getattr(image, 'n_frames', 1) > 1,
        DEEP: is_deep,
    }
    stored = image.height, image.width
    turned = stored[::-1] if orientation in _TRANSPOSING else stored
    return ImageFacts(stored, turned, [what for what, is_so in unusual.items() if is_so])


def _size_of_plain_jpeg(content: bytes) -> tuple[int, int] | None:
    """Height and width of a whole JPEG of three colours without EXIF; None for any other image.

    Pillow takes up to a tenth of the decoder's time to open one, and finds the same.
    """
    at, size = 2, None
    if content[:2] != b'\xff\xd8':
        return None
    while content[at : at + 1] == b'\xff' and len(content) > at + 9:
        marker, length, bits, height, width, colours = unpack_from('>xBHBHHB', content, at)
        at += 2 + length
        if marker in _JPEG_FRAMES:
            if size or (bits, colours) != (8, 3):
                return None
            size = height, width
        elif marker == _JPEG_SCAN:
            is_whole = content.rfind(b'\xff\xd9') >= at
            pixels = size[0] * size[1] if size and is_whole else 0
            return size if 0 < pixels <= (Image.MAX_IMAGE_PIXELS or 0) else None
        elif marker not in _JPEG_TABLES:
            return None
    return None


def _facts_by_opencv(content: bytes, path: str | Path) -> ImageFacts:
    """Facts of what Pillow does not open: TIFFs with colours of 16 bits, very large images."""
    pixels = opencv_pixels(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise BadImageError(f'{path} is damaged, or of a kind that cannot be read')
    size = pixels.shape[:2]
    return ImageFacts(size, size, [DEEP] * (pixels.dtype != np.uint8))


def opencv_pixels(content: bytes, flags: int) -> np.ndarray | None:
    """Pixels in the depth that they are stored in; None where OpenCV cannot decode them."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYDEPTH | flags)
    except cv2.error:
        return None
