import numpy as np
import pytest
from PIL import Image

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.web import UploadLimits, read_upload


@pytest.fixture
def whole():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (64, 48, 3), np.uint8))


@pytest.mark.parametrize('kind', ['jpeg', 'png', 'webp', 'bmp'])
def test_images_are_read_whatever_their_name(whole, tmp_path, kind):
    whole.save(tmp_path / 'file.txt', format=kind)
    assert read_upload(tmp_path / 'file.txt', UploadLimits()).shape == (64, 48, 3)


def test_what_is_no_image_is_refused(whole, tmp_path):
    file = tmp_path / 'file.png'
    for data in (b'', b'no image', b'<svg/>', b'GIF89a', b'%PDF'):
        file.write_bytes(data)
        with pytest.raises(UserError, match='no image that can be read; JPEG, PNG, WEBP, BMP are'):
            read_upload(file, UploadLimits())
    whole.save(file, format='tiff')  # an image, but of a format that is not asked for
    with pytest.raises(UserError, match='no image that can be read'):
        read_upload(file, UploadLimits())


@pytest.mark.parametrize('kind', ['jpeg', 'png', 'webp', 'bmp'])
def test_damaged_images_are_refused(whole, tmp_path, kind):
    file = tmp_path / 'file'
    whole.save(file, format=kind)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r'damaged|no image'):
        read_upload(file, UploadLimits())


def test_limits(whole, tmp_path):
    file = tmp_path / 'file.png'
    whole.save(file)
    with pytest.raises(UserError, match=r'at most 0\.001 are taken'):
        read_upload(file, UploadLimits(megabytes=0.001))
    with pytest.raises(UserError, match=r'48×64 px; at most 0\.003 megapixels'):
        read_upload(file, UploadLimits(megapixels=0.003))
    with pytest.raises(UserError, match='each side needs at least 50'):
        read_upload(file, UploadLimits(min_side=50))


def test_a_small_file_of_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    file = tmp_path / 'bomb.png'
    Image.new('1', (30000, 30000)).save(file)
    assert file.stat().st_size < 1e6
    with pytest.raises(UserError, match='megapixels'):
        read_upload(file, UploadLimits())
