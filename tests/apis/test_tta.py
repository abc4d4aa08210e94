"""tools/test.py --tta: with one view like the plain test, with all like the toolboxes' own."""

import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.engine.test_time_augmentation import use_test_time_augmentation
from cyclemlp_mm.errors import UserError

NO_WORKERS = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return shapes.write_coco(tmp_path_factory.mktemp('data') / 'coco', 2, 2, (120, 90))


@pytest.fixture(scope='module')
def ade(tmp_path_factory):
    folder = shapes.write_ade20k(tmp_path_factory.mktemp('data') / 'ade', 2, 2, (64, 48))
    names = (folder / 'classes.txt').read_text().split()
    return folder, names


def run_test(tmp_path, model, data, *options, cfg_options=()):
    """Metrics and predictions of a test."""
    out = tmp_path / 'out.pkl'
    folder, *_ = data if isinstance(data, tuple) else [data]
    argv = [*model, '--data', folder, '--work-dir', tmp_path / 'wd', '--out', out, *options]
    metrics = evaluate([*map(str, argv), '--cfg-options', *NO_WORKERS, *cfg_options])
    return metrics, pickle.loads(out.read_bytes())


def one_view(config, scale):
    """Option for one scale without flip."""
    steps = Config.fromfile(config).tta_pipeline[1].transforms
    steps[0] = [dict(type='Resize', keep_ratio=True, **scale)]
    steps[1] = [dict(type='RandomFlip', prob=0.0)]
    return [f'tta_pipeline.1.transforms={[[dict(step) for step in part] for part in steps]}']


@pytest.fixture(scope='module')
def segmentor_of_shapes(tmp_path_factory, ade):
    import toy_models

    return toy_models.save_segmentor(tmp_path_factory.mktemp('model'), classes=tuple(ade[1]))


def test_a_segmentor_with_one_view_is_the_plain_test(tmp_path, segmentor_of_shapes, ade, capsys):
    plain, masks = run_test(tmp_path, segmentor_of_shapes, ade)
    assert 'testing   single scale' in capsys.readouterr().out
    view = one_view(segmentor_of_shapes[0], dict(scale_factor=1.0))
    one, same = run_test(tmp_path, segmentor_of_shapes, ade, '--tta', cfg_options=view)
    assert one == pytest.approx(plain, nan_ok=True)
    for a, b in zip(masks, same):
        assert torch.equal(a['pred_sem_seg']['data'], b['pred_sem_seg']['data'])


def test_a_detector_with_one_view_is_the_plain_test(tmp_path, detector, coco):
    plain, boxes = run_test(tmp_path, detector, coco)
    view = one_view(detector[0], dict(scale=(128, 128)))
    one, same = run_test(tmp_path, detector, coco, '--tta', cfg_options=view)
    assert one == pytest.approx(plain, nan_ok=True)
    for a, b in zip(boxes, same):
        a, b = ordered(a['pred_instances']), ordered(b['pred_instances'])
        assert len(a) > 0 and torch.allclose(a, b, atol=1e-4)


def ordered(instances):
    """Rows of label, score and box, the best first."""
    parts = instances['labels'][:, None].float(), instances['scores'][:, None], instances['bboxes']
    rows = torch.cat(parts, dim=1)
    return rows[torch.argsort(rows[:, 1], descending=True, stable=True)]


@pytest.mark.slow
def test_masks_are_left_out_and_this_is_logged(tmp_path, mask_detector, coco, capsys):
    metrics, _ = run_test(tmp_path, mask_detector, coco, '--tta')
    assert 'masks are neither made nor evaluated' in capsys.readouterr().out
    assert 'coco/bbox_mAP' in metrics and not any('segm' in name for name in metrics)


def test_all_views_give_more_boxes_and_the_work_dirs_config_stays_plain(
    tmp_path, detector, coco, capsys
):
    plain, found = (run_test(tmp_path, detector, coco, *tta)[1] for tta in ([], ['--tta']))
    assert 'testing   6 views per image' in capsys.readouterr().out
    for sample, other in zip(found, plain):
        assert len(sample['pred_instances']['labels']) > len(other['pred_instances']['labels'])
    cfg = Config.fromfile(tmp_path / 'wd' / 'toy.py')
    assert cfg.model.type == 'RetinaNet' and 'TestTimeAug' not in str(cfg.test_dataloader)


def test_labels_are_checked_in_the_views(ade):
    cfg = use_own_data(load_config('fpn_cyclemlp_b1_256x256_600i_small'), ade[0])
    use_test_time_augmentation(cfg)
    *_, load, [check], _ = cfg.test_dataloader.dataset.pipeline[1].transforms
    assert load[0].type == 'LoadAnnotations'
    assert (check.type, check.num_classes) == ('CheckLabels', len(ade[1]))


@pytest.mark.parametrize(
    ('name', 'change', 'needed'),
    [
        ('cyclemlp_demo', {}, 'tta_model'),
        ('retinanet_cyclemlp_demo', dict(tta_pipeline=None), 'tta_pipeline'),
        ('retinanet_cyclemlp_demo', dict(tta_pipeline=[dict(type='Resize')]), 'TestTimeAug'),
    ],
)
def test_configs_without_views_are_refused(name, change, needed):
    cfg = load_config(name)
    cfg.update(change)
    with pytest.raises(UserError, match=needed):
        use_test_time_augmentation(cfg)


@pytest.mark.slow
@pytest.mark.parametrize('toolbox', ['mmdet', 'mmseg'])
def test_the_toolboxes_own_tool_gives_the_same(tmp_path, toolbox, request, coco, ade):
    """Their tools/test.py --tta, with the saved config pointed at the data."""
    name, data = ('detector', coco) if toolbox == 'mmdet' else ('segmentor_of_shapes', ade)
    model = request.getfixturevalue(name)
    ours, _ = run_test(tmp_path, model, data, '--tta')
    # The work dir's config has the data in it.
    tool = Path(importlib.import_module(toolbox).__file__).parent / '.mim' / 'tools' / 'test.py'
    argv = [sys.executable, tool, tmp_path / 'wd' / 'toy.py', model[1], '--tta']
    argv += ['--work-dir', tmp_path / 'theirs']
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    [scores] = (tmp_path / 'theirs').glob('*/*.json')
    theirs = json.loads(scores.read_text())
    shared = set(ours) & set(theirs)
    assert shared and all(theirs[key] == pytest.approx(ours[key], abs=1e-3) for key in shared)
