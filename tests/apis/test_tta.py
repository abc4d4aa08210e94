"""tools/test.py --tta: with one view the plain test, with all views what the toolboxes' own say."""

import importlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from toy_models import save_segmentor
from toy_runs import NO_WORKERS, run_tool

from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.engine.test_time_augmentation import use_test_time_augmentation
from cyclemlp_mm.errors import UserError


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return shapes.write_coco(tmp_path_factory.mktemp('data') / 'coco', 2, 2, (120, 90))


@pytest.fixture(scope='module')
def ade(tmp_path_factory):
    return shapes.write_ade20k(tmp_path_factory.mktemp('data') / 'ade', 2, 2, (64, 48))


@pytest.fixture(scope='module')
def segmentor_of_shapes(tmp_path_factory, ade):
    classes = (ade / 'classes.txt').read_text().split()
    return save_segmentor(tmp_path_factory.mktemp('model'), classes=tuple(classes))


def run_test(tmp_path, model, data, *options, cfg_options=()):
    """Metrics and predictions of a test."""
    out = tmp_path / 'out.pkl'
    argv = [*model, '--data', data, '--work-dir', tmp_path / 'wd', '--out', out, *options]
    metrics = evaluate([*map(str, argv), '--cfg-options', *NO_WORKERS, *cfg_options])
    return metrics, pickle.loads(out.read_bytes())


def one_view(config, scale):
    """Option for one scale without flip."""
    steps = Config.fromfile(config).tta_pipeline[1].transforms
    steps[0] = [dict(type='Resize', keep_ratio=True, **scale)]
    steps[1] = [dict(type='RandomFlip', prob=0.0)]
    return [f'tta_pipeline.1.transforms={[[dict(step) for step in part] for part in steps]}']


def test_a_segmentor_with_one_view_is_the_plain_test(tmp_path, segmentor_of_shapes, ade, capsys):
    plain, masks = run_test(tmp_path, segmentor_of_shapes, ade)
    assert 'testing   single scale' in capsys.readouterr().out
    view = one_view(segmentor_of_shapes[0], dict(scale_factor=1.0))
    one, same = run_test(tmp_path, segmentor_of_shapes, ade, '--tta', cfg_options=view)
    assert one == pytest.approx(plain, nan_ok=True)
    for a, b in zip(masks, same):
        assert torch.equal(a['pred_sem_seg']['data'], b['pred_sem_seg']['data'])


def rows_of(sample):
    """Rows of label, score and box, the best first."""
    found = sample['pred_instances']
    parts = found['labels'][:, None].float(), found['scores'][:, None], found['bboxes']
    rows = torch.cat(parts, dim=1)
    return rows[torch.argsort(rows[:, 1], descending=True, stable=True)]


def test_a_detector_with_one_view_and_with_all(tmp_path, detector, coco, capsys):
    plain, boxes = run_test(tmp_path, detector, coco)
    view = one_view(detector[0], dict(scale=(128, 128)))
    one, same = run_test(tmp_path, detector, coco, '--tta', cfg_options=view)
    assert one == pytest.approx(plain, nan_ok=True)
    for a, b in zip(boxes, same):
        assert len(rows_of(a)) > 0 and torch.allclose(rows_of(a), rows_of(b), atol=1e-4)
    _, merged = run_test(tmp_path, detector, coco, '--tta')
    assert '6 views per image' in capsys.readouterr().out
    assert all(len(rows_of(sample)) > 12 for sample in merged)  # more than one view gives
    left = Config.fromfile(tmp_path / 'wd' / 'toy.py')  # the work dir's config stays plain
    assert left.model.type == 'RetinaNet' and 'TestTimeAug' not in str(left.test_dataloader)


@pytest.mark.slow
def test_masks_are_left_out_and_this_is_logged(tmp_path, mask_detector, coco, capsys):
    metrics, _ = run_test(tmp_path, mask_detector, coco, '--tta')
    assert 'masks are neither made nor evaluated' in capsys.readouterr().out
    assert 'coco/bbox_mAP' in metrics and not any('segm' in name for name in metrics)


def test_labels_are_checked_in_the_views(ade):
    cfg = use_own_data(load_config('fpn_cyclemlp_b1_256x256_600i_small'), ade)
    use_test_time_augmentation(cfg)
    *_, load, [check], _ = cfg.test_dataloader.dataset.pipeline[1].transforms
    assert load[0].type == 'LoadAnnotations'
    assert (check.type, check.num_classes) == ('CheckLabels', 5)


@pytest.mark.parametrize(
    ('name', 'change', 'needed'),
    [
        ('cyclemlp_demo', {}, 'tta_model'),
        ('retinanet_cyclemlp_demo', dict(tta_pipeline=[dict(type='Resize')]), 'TestTimeAug'),
    ],
)
def test_configs_without_views_are_refused(name, change, needed):
    cfg = load_config(name)
    cfg.update(change)
    with pytest.raises(UserError, match=needed):
        use_test_time_augmentation(cfg)


@pytest.mark.slow
@pytest.mark.parametrize('toolbox, task', [('mmdet', 'detector'), ('mmseg', 'segmentor_of_shapes')])
def test_the_toolboxes_own_tool_gives_the_same(tmp_path, toolbox, task, request, coco, ade):
    """Their tools/test.py --tta, with the config that our test leaves in the work dir."""
    config, checkpoint = request.getfixturevalue(task)
    data = coco if toolbox == 'mmdet' else ade
    ours, _ = run_test(tmp_path, (config, checkpoint), data, '--tta')
    tool = Path(importlib.import_module(toolbox).__file__).parent / '.mim' / 'tools' / 'test.py'
    argv = [tmp_path / 'wd' / 'toy.py', checkpoint, '--tta', '--work-dir', tmp_path / 'theirs']
    run_tool(tool, *argv, cwd=tmp_path, fresh=True)
    [scores] = (tmp_path / 'theirs').glob('*/*.json')
    theirs = json.loads(scores.read_text())
    shared = set(ours) & set(theirs)
    assert shared and all(theirs[key] == pytest.approx(ours[key], abs=1e-3) for key in shared)
