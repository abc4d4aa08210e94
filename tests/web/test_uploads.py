import numpy as np
import pytest
from PIL import Image

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.web import UploadLimits, read_upload

KINDS = ('jpeg', 'png', 'webp', 'bmp')


@pytest.fixture
def whole():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (64, 48, 3), np.uint8))


@pytest.mark.parametrize('kind', KINDS)
def test_images_are_read_whatever_their_name(whole, tmp_path, kind):
    file = tmp_path / 'file.txt'
    whole.save(file, format=kind)
    assert read_upload(file, UploadLimits()).shape == (64, 48, 3)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=r'damaged|Cannot read'):
        read_upload(file, UploadLimits())


@pytest.mark.parametrize('data', [b'', b'no image', b'<svg/>', b'GIF89a', b'%PDF', 'tiff'])
def test_other_files_are_rejected(data, whole, tmp_path):
    file = tmp_path / 'file.png'
    if data == 'tiff':  # an image, but of a format that browsers do not show
        whole.save(file, format=data)
    else:
        file.write_bytes(data)
    with pytest.raises(UserError, match=r'Cannot read.*JPEG, PNG, WEBP, BMP'):
        read_upload(file, UploadLimits())


def test_limits(whole, tmp_path):
    whole.save(tmp_path / 'file.png')
    for limits, message in (
        (dict(megabytes=0.001), r'at most 0\.001 are'),
        (dict(megapixels=0.003), r'48×64 px; at most 0\.003 megapixels'),
    ):
        with pytest.raises(UserError, match=message):
            read_upload(tmp_path / 'file.png', UploadLimits(**limits))


def test_a_small_file_of_a_huge_image_is_rejected_before_it_is_decoded(tmp_path):
    file = tmp_path / 'bomb.png'
    Image.new('1', (30000, 30000)).save(file)
    assert file.stat().st_size < 1e6
    with pytest.raises(UserError, match='megapixels'):
        read_upload(file, UploadLimits())
