import os
import shutil

import numpy as np
import pytest
from toy_models import save_detector, save_segmentor

from cyclemlp_mm.errors import MissingFileError
from cyclemlp_mm.web import Workbench, find_models

#: The last one, the best, then the newest.
CHECKPOINTS = ['epoch_2.pth', 'best_coco_bbox_mAP_epoch_2.pth', 'epoch_10.pth', 'epoch_1.pth']


@pytest.fixture
def work_dirs(tmp_path):
    save_segmentor(tmp_path / 'a_run')
    save_detector(tmp_path / 'demo')
    for name in CHECKPOINTS[:3]:
        shutil.copy(tmp_path / 'demo' / 'epoch_1.pth', tmp_path / 'demo' / name)
    (tmp_path / 'demo' / 'last_checkpoint').write_bytes(b'/els\xe4where/epoch_2.pth')
    (tmp_path / 'demo' / '.partial-1-epoch_3.pth').write_bytes(b'half')
    (tmp_path / 'demo' / 'notes.py').write_bytes('# Größe'.encode('latin-1'))  # not a config
    for name, scope in (('classifier', 'mmpretrain'), ('untrained', 'mmdet')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'c.py').write_text(f"default_scope = '{scope}'\n")
    (tmp_path / 'classifier' / 'epoch_1.pth').write_bytes(b'')
    return tmp_path


def test_the_demo_comes_first_then_the_others(work_dirs):
    models = find_models(work_dirs)
    assert [model.name for model in models] == ['demo: toy', 'a_run: toy', 'classifier: c']
    assert [path.name for path in models[0].checkpoints] == CHECKPOINTS


def test_named_models_come_before(work_dirs):
    named = ('retinanet_cyclemlp_demo', str(work_dirs / 'demo' / 'epoch_10.pth'))
    models = find_models(work_dirs, [named, named])
    assert models[0].name == 'retinanet_cyclemlp_demo (demo/epoch_10.pth)' and len(models) == 5
    assert models[1].name == f'{models[0].name} 2'
    with pytest.raises(MissingFileError, match=r'gone\.pth does not exist'):
        find_models(work_dirs, [('retinanet_cyclemlp_demo', 'gone.pth')])


def test_nothing_trained_yet_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / 'gone'):
        with pytest.raises(MissingFileError, match='run `make demo` first'):
            find_models(folder)


def test_models_are_loaded_once_and_the_oldest_freed(work_dirs):
    image = np.zeros((64, 64, 3), np.uint8)
    workbench = Workbench(find_models(work_dirs), 'cpu', max_loaded=2)
    workbench.predict('demo: toy', 'epoch_1.pth', image)
    [first] = workbench._loaded.values()
    workbench.predict('demo: toy', 'epoch_1.pth', image)
    assert list(workbench._loaded.values()) == [first]
    workbench.predict('a_run: toy', 'epoch_1.pth', image)
    workbench.predict('demo: toy', 'epoch_10.pth', image)
    assert len(workbench._loaded) == 2 and first not in workbench._loaded.values()
    os.utime(work_dirs / 'demo' / 'epoch_10.pth', (0, 0))  # written again
    before = list(workbench._loaded.values())[-1]
    workbench.predict('demo: toy', 'epoch_10.pth', image)
    assert list(workbench._loaded.values())[-1] is not before
    with pytest.raises(MissingFileError, match='reload the page'):
        workbench.predict('evil', 'epoch_1.pth', image)
    with pytest.raises(MissingFileError, match='has no checkpoint'):
        workbench.predict('demo: toy', '../a_run/epoch_1.pth', image)


def test_it_is_said_why_nothing_was_found(work_dirs):
    image = np.zeros((64, 64, 3), np.uint8)
    answer = Workbench(find_models(work_dirs), 'cpu').predict('demo: toy', 'epoch_1.pth', image)
    answer.prediction.scores[:] = np.linspace(0.1, 0.2, len(answer.prediction))
    answer.prediction.labels[:] = 2
    said = answer.describe(0.3)
    assert 'The model knows 4 classes: circle, square, triangle, star.' in said
    assert 'The best score, 0.20 (triangle), is below the minimum 0.3.' in said
    answer.prediction = answer.prediction.above(1)
    assert 'No object was predicted at any score.' in answer.describe(0.3)


def test_names_cannot_inject_html(work_dirs):
    save_segmentor(work_dirs / 'b', classes=('<script>alert(1)</script>', 'a', 'b'))
    image = np.zeros((64, 64, 3), np.uint8)
    answer = Workbench(find_models(work_dirs), 'cpu').predict('b: toy', 'epoch_1.pth', image)
    answer.prediction.label_map[:] = 0
    said = answer.describe(0.3)
    assert '<script>' not in said and '&lt;script&gt;' in said
