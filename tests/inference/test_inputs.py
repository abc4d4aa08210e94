import cv2
import numpy as np
import pytest

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.inference import find_inputs
from cyclemlp_mm.inference.inputs import read_video


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'')


@pytest.fixture
def folder(tmp_path):
    touch(tmp_path, 'b.png', 'a.jpg', 'a.png', 'deep/a.jpg', 'notes.txt', 'walk.mp4')
    return tmp_path


def names(*items, **more):
    return [source.name for source in find_inputs([str(item) for item in items], **more)]


def test_folders_files_and_globs(folder):
    assert names(folder) == ['a', 'a-2', 'b', 'walk']  # a.jpg and a.png: nothing is overwritten
    assert names(folder / 'b.png', folder) == ['b', 'a', 'a-2', 'walk']  # each file once
    assert names(folder / '**' / 'a.*') == ['a', 'a-2', 'deep/a']
    assert [s.is_video for s in find_inputs([str(folder)])] == [False, False, False, True]


def test_what_is_not_there_is_said(folder):
    (folder / 'empty').mkdir()
    for item, message in {
        'gone.jpg': 'no such file or folder',
        'notes.txt': 'neither an image nor a video',
        '*.webp': 'matches no images',
        'empty': 'no images',
    }.items():
        with pytest.raises(UserError, match=message):
            names(folder / item)


def test_files_that_are_passed_over_are_returned(tmp_path):
    images = 'a.JFIF b.gif c.ppm d.avif e.heic f.jp2 g.wmv'
    touch(tmp_path, *images.split(), 'notes.txt', 'x.psd', '._a.jpg', '.DS_Store')
    for item in (tmp_path, tmp_path / '*'):
        left_out = []
        assert len(names(item, passed_over=left_out)) == 7
        assert sorted(p.name for p in left_out) == ['notes.txt', 'x.psd']


def test_images_in_sub_folders_are_counted_and_the_glob_is_named(tmp_path):
    touch(tmp_path, 'cam1/0001.jpg', 'cam2/deep/0001.png', 'cam2/notes.txt')
    with pytest.raises(UserError, match=r"for the 2 in its sub-folders, give '.*/\*\*/\*'"):
        names(tmp_path)
    touch(tmp_path, 'top.jpg')
    left_out = []
    assert names(tmp_path, passed_over=left_out) == ['top']
    assert sorted(p.name for p in left_out) == ['0001.jpg', '0001.png']
    assert names(f'{tmp_path}/**/*') == ['cam1/0001', 'cam2/deep/0001', 'top']


def test_a_video_that_ends_early_is_reported(tmp_path):
    path = tmp_path / 'a.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    for frame in np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8):
        writer.write(frame)
    writer.release()
    assert len(list(read_video(path))) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r'a\.avi ends after \d+ of 20 frames: it is truncated'):
        list(read_video(path))
