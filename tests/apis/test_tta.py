"""tools/test.py --tta: with one view equal to the plain test, with all views equal by hand."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from paths import SHARED, needs_data

from cyclemlp_mm.apis.test import test as evaluate
from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.engine.test_time_augmentation import use_test_time_augmentation
from cyclemlp_mm.errors import UserError

CAMVID = SHARED / 'data' / 'camvid'
NO_WORKERS = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
#: The views of the small configs that the models below are saved with.
DETECTOR_SCALES, FACTORS = [(128, 128), (96, 96), (160, 160)], (1.0, 0.5, 0.75, 1.25, 1.5, 1.75)


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


@pytest.mark.slow
@needs_data
def test_photos_with_one_view_and_with_all(tmp_path, capsys):
    import toy_models

    names = (CAMVID / 'classes.txt').read_text().split()
    model = toy_models.save_segmentor(tmp_path / 'model', classes=tuple(names))
    # Three photos of 480x360.
    options = ['--ignore-label', '11'], ['test_dataloader.dataset.indices=3']
    plain, masks = run_test(tmp_path, model, CAMVID, *options[0], cfg_options=options[1])
    view = one_view(model[0], dict(scale_factor=1.0))
    arguments = ['--tta', *options[0]]
    one, same = run_test(tmp_path, model, CAMVID, *arguments, cfg_options=[*options[1], *view])
    assert one == pytest.approx(plain, nan_ok=True) and len(masks) == 3
    for a, b in zip(masks, same):
        assert torch.equal(a['pred_sem_seg']['data'], b['pred_sem_seg']['data'])
    _, found = run_test(tmp_path, model, CAMVID, *arguments, cfg_options=options[1])
    check_means(model, found, len(names))


@pytest.mark.slow
def test_a_segmentor_with_all_views_is_their_mean(tmp_path, segmentor_of_shapes, ade, capsys):
    metrics, found = run_test(tmp_path, segmentor_of_shapes, ade, '--tta')
    assert 'testing   ms+flip, 12 views per image' in capsys.readouterr().out
    assert metrics != run_test(tmp_path, segmentor_of_shapes, ade)[0]
    check_means(segmentor_of_shapes, found, len(ade[1]))


def check_means(saved, found, num_classes):
    """Predictions against the mean of all views' softmax, in numpy."""
    model = built(saved)
    for sample in found:
        image = cv2.imread(sample['img_path'])
        height, width = image.shape[:2]
        total = np.zeros((num_classes, height, width))
        for factor in FACTORS:
            for flip in (False, True):
                # As mmcv rounds the size of an enlarged image.
                size = int(width * factor + 0.5), int(height * factor + 0.5)
                view = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
                view = np.ascontiguousarray(view[:, ::-1] if flip else view)
                logits = seg_logits(model, view, (height, width)).astype(np.float64)
                logits = logits[..., ::-1] if flip else logits
                powers = np.exp(logits - logits.max(0))
                total += powers / powers.sum(0)
        labels = sample['pred_sem_seg']['data'][0].numpy()
        best = np.sort(total, axis=0)
        clear = best[-1] - best[-2] > 1e-4  # rounding decides the others
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(labels[clear], total.argmax(0)[clear])


def built(saved):
    config, checkpoint = saved
    cfg = Config.fromfile(config)
    init_default_scope(require_toolbox(cfg))
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    return model


@torch.no_grad()
def seg_logits(model, image, size):
    """Logits of one view, (K, H, W), padded and cropped as mmseg's, at the size of the image."""
    batch = dict(inputs=[torch.from_numpy(image.transpose(2, 0, 1).copy())], data_samples=[])
    from mmseg.structures import SegDataSample

    batch['data_samples'] = [
        SegDataSample(metainfo=dict(img_shape=image.shape[:2], ori_shape=size))
    ]
    batch = model.data_preprocessor(batch, False)
    metas = [dict(sample.metainfo) for sample in batch['data_samples']]
    logits = model.encode_decode(batch['inputs'], metas)
    logits = logits[..., : image.shape[0], : image.shape[1]]
    scaled = torch.nn.functional.interpolate(logits, size, mode='bilinear', align_corners=False)
    return scaled[0].numpy()


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


def test_a_detector_with_all_views_merges_their_boxes(tmp_path, detector, coco):
    _, found = run_test(tmp_path, detector, coco, '--tta')
    cfg = Config.fromfile(detector[0])
    model = built(detector)
    for sample in found:
        rows = []
        for scale in DETECTOR_SCALES:
            for flip in (False, True):
                rows += predicted(model, cfg, sample['img_path'], scale, flip)
        expected = np.array(nms_by_hand(rows)[:100])
        got = ordered(sample['pred_instances']).numpy()
        assert len(got) == len(expected) > 12  # more than one view gives
        np.testing.assert_allclose(got[:, 1], expected[:, 1], atol=1e-5)
        np.testing.assert_allclose(got[:, 2:], expected[:, 2:], atol=1e-2)


def predicted(model, cfg, path, scale, flip):
    """Rows of label, score and box, of one view of an image, in the image's own coordinates."""
    steps = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
    steps[1].scale = scale
    steps = [TRANSFORMS.build(step) for step in steps if step.type != 'LoadAnnotations']
    image = steps[0](dict(img_path=path, img_id=0))
    width = image['ori_shape'][1]
    for step in steps[1:-1]:
        image = step(image)
    if flip:  # after the resizing, as the view is made
        image['img'] = np.ascontiguousarray(image['img'][:, ::-1])
    batch = steps[-1](image)
    with torch.no_grad():
        [result] = model.test_step(
            dict(inputs=[batch['inputs']], data_samples=[batch['data_samples']])
        )
    rows = ordered(result.pred_instances).numpy().astype(np.float64)
    if flip:
        rows[:, [2, 4]] = width - rows[:, [4, 2]]
    return rows.tolist()


def nms_by_hand(rows, threshold=0.5):
    """Boxes that no better one of their class covers by more than ``threshold``."""
    kept = []
    for row in sorted(rows, key=lambda row: -row[1]):
        if all(row[0] != other[0] or iou(row[2:], other[2:]) <= threshold for other in kept):
            kept.append(row)
    return kept


def iou(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)


@pytest.mark.slow
def test_masks_are_left_out_and_this_is_logged(tmp_path, mask_detector, coco, capsys):
    metrics, _ = run_test(tmp_path, mask_detector, coco, '--tta')
    assert 'masks are neither made nor evaluated' in capsys.readouterr().out
    assert 'coco/bbox_mAP' in metrics and not any('segm' in name for name in metrics)


def test_the_work_dirs_config_stays_plain(tmp_path, detector, coco):
    run_test(tmp_path, detector, coco, '--tta')
    cfg = Config.fromfile(tmp_path / 'wd' / 'toy.py')
    assert cfg.model.type == 'RetinaNet' and 'TestTimeAug' not in str(cfg.test_dataloader)


def test_labels_are_checked_in_the_views(tmp_path, segmentor_of_shapes, ade):
    cfg = load_config('fpn_cyclemlp_b1_256x256_600i_small')
    check = dict(type='CheckLabels', num_classes=3, ignore_label=None)
    cfg.test_dataloader.dataset.pipeline.insert(2, check)
    use_test_time_augmentation(cfg)
    *_, load, checks, _ = cfg.test_dataloader.dataset.pipeline[1].transforms
    assert load[0].type == 'LoadAnnotations' and checks == [check]


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
    import importlib
    import json
    import subprocess
    import sys
    from pathlib import Path

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
