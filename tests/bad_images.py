"""Image files as people have them: broken in every way we know, or only unusual."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (64, 48)  # width, height that the annotations are for


def picture(mode='RGB', size=SIZE):
    """A Pillow image with something in it."""
    noise = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encode(image, kind='JPEG', **kwargs):
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def exif_rotated(stored_size):
    """A JPEG whose EXIF says: turn me by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture(size=stored_size), exif=exif)


def with_thumbnail_but_truncated():
    """Truncated, but with the end marker of an EXIF thumbnail in it."""
    whole = encode(picture(), quality=95)
    thumbnail = encode(picture(size=(8, 8)))
    segment = b'\xff\xe1' + struct.pack('>H', len(thumbnail) + 2) + thumbnail
    return whole[:2] + segment + whole[2 : len(whole) // 2]


def bomb():
    """A PNG of 60000 x 60000 pixels in some hundred bytes."""

    def chunk(kind, content):
        check = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + check

    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


def deep(kind):
    """16 bits per pixel."""
    ramp = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(np.uint16)
    return encode(Image.fromarray(ramp), kind)


FRAMES = dict(save_all=True, append_images=[picture('L')])
#: name of the file: (its bytes, what becomes of it, a word of the reason).
BAD_IMAGES = {
    'truncated.jpg': (lambda: encode(picture())[:-300], 'skipped', 'truncated'),
    'half.png': (lambda: encode(picture(), 'PNG')[:2000], 'skipped', 'truncated'),
    'thumbnail.jpg': (with_thumbnail_but_truncated, 'skipped', 'truncated'),
    'empty.jpg': (lambda: b'', 'skipped', 'empty'),
    'zeros.jpg': (lambda: bytes(5000), 'skipped', 'zero bytes'),
    'page.jpg': (lambda: b'<!DOCTYPE html><html>404</html>', 'skipped', 'HTML'),
    'lfs.jpg': (lambda: b'version https://git-lfs.github.com/spec/v1\noid', 'skipped', 'LFS'),
    'text.png': (lambda: b'not an image at all', 'skipped', 'cannot be read as an image'),
    'head_only.jpg': (lambda: b'\xff\xd8\xff\xe0', 'skipped', 'image|header|truncated'),
    'bomb.png': (bomb, 'skipped', 'too many pixels'),
    'other_size.jpg': (lambda: encode(picture(size=(30, 30))), 'skipped', 'annotations'),
    'one_pixel.jpg': (lambda: encode(picture(size=(1, 1))), 'skipped', 'annotations'),
    'long.jpg': (lambda: encode(picture(size=(20000, 10))), 'skipped', 'annotations'),
    'png_named.jpg': (lambda: encode(picture(), 'PNG'), 'converted', 'PNG named .jpg'),
    'cmyk.jpg': (lambda: encode(picture('CMYK')), 'converted', 'CMYK'),
    'deep.png': (lambda: deep('PNG'), 'converted', '8 bits'),
    'deep.tif': (lambda: deep('TIFF'), 'converted', '8 bits'),
    'alpha.png': (lambda: encode(picture('RGBA'), 'PNG'), 'converted', 'alpha'),
    'grey_alpha.png': (lambda: encode(picture('LA'), 'PNG'), 'converted', 'alpha'),
    'palette.png': (lambda: encode(picture('P'), 'PNG', transparency=0), 'converted', 'alpha'),
    'grey.jpg': (lambda: encode(picture('L')), 'converted', 'grey'),
    'black_white.png': (lambda: encode(picture('1'), 'PNG'), 'converted', 'grey'),
    'turned.jpg': (lambda: exif_rotated((48, 64)), 'converted', 'EXIF'),
    'stored.jpg': (lambda: exif_rotated(SIZE), 'converted', 'EXIF'),
    'frames.gif': (lambda: encode(picture(), 'GIF', **FRAMES), 'converted', 'frames'),
    'plain.bmp': (lambda: encode(picture(), 'BMP'), 'read', ''),
    'plain.webp': (lambda: encode(picture(), 'WEBP'), 'read', ''),
    'plain.jpg': (lambda: encode(picture()), 'read', ''),
}
