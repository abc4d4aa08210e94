"""Whole detectors as ONNX: the objects of mmdet's own predict, or an error that names a key."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from toy_models import ARCH

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.export import ExportedPart, detectors, export_model
from cyclemlp_mm.export.check import runner
from cyclemlp_mm.export.detectors import check_supported, objects_differ

pytest.importorskip('mmdet')
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

RETINANET, MASK_RCNN = 'retinanet_cyclemlp_demo', 'mask_rcnn_cyclemlp_demo'
SIZES = [(128, 128), (97, 333), (20, 64), (201, 131)]


def build(name, **settings):
    """A demo model with random weights that finds objects; settings are of its ``model``."""
    cfg = load_config(name, {f'model.{key}': value for key, value in settings.items()})
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.arch, cfg.model.neck.in_channels = ARCH, list(ARCH['widths'][1:])
    model = MODELS.build(cfg.model).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(('retina_cls.bias', 'fc_cls.bias')):
            torch.nn.init.normal_(parameter)
    return model


def predict(model, image):
    """What mmdet's ``test_step`` finds in an image, uint8 (3, H, W)."""
    from mmdet.structures import DetDataSample

    sample, size = DetDataSample(), tuple(image.shape[1:])
    sample.set_metainfo(dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        [sample] = model.test_step(dict(inputs=[image], data_samples=[sample]))
    found = sample.pred_instances
    return found.bboxes, found.scores, found.labels


def normalised(model, image):
    step = model.data_preprocessor
    return ((image.flip(0) - step.mean) / step.std)[None]


def check_objects(model, path, sizes):
    """Compare at each size; returns how many objects there were."""
    run, numbers = runner(path), []
    for size in sizes:
        image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
        ours, theirs = predict(model, image), run(normalised(model, image))
        assert objects_differ(ours, theirs[:3], 1e-4) < 1e-5
        assert [t.dtype for t in theirs[:3]] == [torch.float32, torch.float32, torch.int64]
        assert (theirs[0] <= torch.tensor([size[1], size[0]] * 2)).all()  # clipped before padding
        if theirs[3:]:
            assert theirs[3].shape == (len(theirs[0]), 28, 28)
        numbers.append(len(ours[0]))
    return numbers


@pytest.mark.few(1)
@pytest.mark.parametrize('name', [MASK_RCNN, RETINANET])
def test_objects_are_mmdets(name, tmp_path):
    """The same boxes, scores and labels, at sizes that are no multiple of 32, too."""
    model = build(name)
    report = export_model(model, tmp_path / 'model.onnx', 'model', {'mean': '[1]'})
    outputs = ['boxes', 'scores', 'labels'] + ['masks'] * (name == MASK_RCNN)
    assert list(report.outputs) == outputs and report.difference < 1e-4
    assert 'One image at once, minimum side 32 px' in str(report)
    assert min(check_objects(model, report.path, SIZES)) >= 10
    file = onnx.load(str(report.path))
    assert {node.domain for node in file.graph.node} == {''} and not file.functions
    [image] = file.graph.input
    sizes = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert sizes == [1, 3, 'height', 'width']
    assert ExportedPart(model).part == 'neck'


#: Name, settings, opset, least and most objects.
THRESHOLDS = [
    (MASK_RCNN, {'test_cfg.rcnn.score_thr': 0.999}, 16, 0, 0),
    (RETINANET, {'test_cfg.score_thr': 0.999}, 16, 0, 0),
    (RETINANET, {'test_cfg.score_thr': 0.0, 'test_cfg.max_per_img': 200}, 17, 200, 200),
    (RETINANET, {'test_cfg.nms.iou_threshold': 0.1, 'test_cfg.nms_pre': 50}, 18, 5, 100),
    (MASK_RCNN, {'test_cfg.rcnn.score_thr': 0.0, 'test_cfg.rpn.nms_pre': 1000}, 19, 20, 20),
    (MASK_RCNN, {'test_cfg.rcnn.nms.iou_threshold': 0.2, 'test_cfg.rpn.max_per_img': 7}, 20, 1, 20),
]


@pytest.mark.few(1)
@pytest.mark.parametrize('name, settings, opset, least, most', THRESHOLDS)
def test_thresholds_are_the_configs(name, settings, opset, least, most, tmp_path):
    """Few, many and no objects; each opset from 16 on."""
    model = build(name, **settings)
    report = export_model(model, tmp_path / 'model.onnx', 'model', opset=opset)
    numbers = check_objects(model, report.path, SIZES)
    assert least <= min(numbers) and max(numbers) <= most, numbers


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet_mpvit_demo', 'mask_rcnn_cyclemlp_b1_fpn_6e_small'])
def test_other_backbones_and_levels(name, tmp_path):
    """Five levels, 80 classes, and RoIAlign with as many samples as a region needs."""
    cfg = load_config(name)
    init_default_scope(require_toolbox(cfg))
    model = MODELS.build(cfg.model).eval()
    report = export_model(model, tmp_path / 'model.onnx', 'model')
    assert report.difference < 1e-4


@pytest.mark.slow
def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    right = detectors._decode
    monkeypatch.setattr(detectors, '_decode', lambda *arguments: right(*arguments) * 1.001)
    with pytest.raises(UserError, match=r'differs from mmdet: .* fewer than 95% .* nothing was'):
        export_model(build(RETINANET), tmp_path / 'model.onnx', 'model')
    assert not list(tmp_path.iterdir())


EXTRACTOR = 'roi_head.mask_roi_extractor'
#: Name, settings, words of the message.
REJECTED = [
    (
        RETINANET,
        {'test_cfg.nms.type': 'soft_nms'},
        r"test_cfg\.nms is .*soft_nms.* dict\(type='nms'",
    ),
    (RETINANET, {'test_cfg.nms.class_agnostic': True}, r'test_cfg\.nms is .*class_agnostic'),
    (RETINANET, {'test_cfg.nms_pre': -1}, r'model\.test_cfg\.nms_pre is -1.* above 0'),
    (RETINANET, {'test_cfg.min_bbox_size': 3}, r'test_cfg\.min_bbox_size is 3.* 0 or -1 only'),
    (RETINANET, {'test_cfg.score_factor': 1}, r'test_cfg\.score_factor is 1.* no such key'),
    (RETINANET, {'bbox_head.type': 'GARetinaHead'}, 'GARetinaHead'),
    (RETINANET, {'data_preprocessor.type': 'MyPreprocessor'}, 'MyPreprocessor'),
    (RETINANET, {'bbox_head.bbox_coder.add_ctr_clamp': True}, r'bbox_coder\.add_ctr_clamp is True'),
    (RETINANET, {'type': 'ATSS'}, 'takes RetinaNet and MaskRCNN, but not ATSS. Take --part neck'),
    (MASK_RCNN, {'test_cfg.rcnn.nms.type': 'soft_nms'}, r'test_cfg\.rcnn\.nms is .*soft_nms'),
    (MASK_RCNN, {'test_cfg.rcnn.mask_thr_binary': -1}, r'rcnn\.mask_thr_binary is -1'),
    (MASK_RCNN, {'test_cfg.rpn.nms.split_thr': 9}, r'test_cfg\.rpn\.nms is .*split_thr'),
    (MASK_RCNN, {'roi_head.bbox_head.reg_class_agnostic': True}, 'reg_class_agnostic is True'),
    (MASK_RCNN, {'roi_head.mask_head.class_agnostic': True}, r'mask_head\.class_agnostic is True'),
    (MASK_RCNN, {'roi_head.bbox_head.type': 'Shared4Conv1FCBBoxHead'}, r'bbox_head\.type is'),
    (MASK_RCNN, {f'{EXTRACTOR}.roi_layer.pool_mode': 'max'}, r"roi_layer\.pool_mode is 'max'"),
    (MASK_RCNN, {f'{EXTRACTOR}.type': 'GenericRoIExtractor'}, 'GenericRoIExtractor'),
]


@pytest.mark.parametrize('name, settings, said', REJECTED)
def test_what_is_not_reproduced_is_an_error(name, settings, said):
    try:
        model = build(name, **settings)
    except (UserError, TypeError, KeyError):  # this class takes other settings: a double will do
        [(key, kind), *_] = settings.items()
        model = build(name)
        part = model.get_submodule(key.removesuffix('.type'))
        part.__class__ = type(kind, (type(part),), {})
    with pytest.raises(UserError, match=said):
        check_supported(model)


def test_cascades_are_an_error():
    cfg = load_config('cascade_mask_rcnn_cyclemlp_t_fpn_ms-3x_coco')
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.arch = dict(ARCH, reweight=False, downsample='patch_merging')
    cfg.model.backbone.init_cfg, cfg.model.neck.in_channels = None, list(ARCH['widths'])
    with pytest.raises(UserError, match=r'but not CascadeRCNN\. Take --part neck'):
        ExportedPart(MODELS.build(cfg.model), 'model')


def test_objects_that_differ():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20]])
    ours = boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    swapped = tuple(values.flip(0) for values in ours)
    assert objects_differ(ours, ours, 1e-4) == objects_differ(ours, swapped, 1e-4) == 0
    none = tuple(values[:0] for values in ours)
    assert objects_differ(none, none, 1e-4) == 0
    for i in range(3):
        other = [values.clone() for values in ours]
        other[i][0] += 1
        assert objects_differ(ours, other, 1e-4) == float('inf')
    assert objects_differ(ours, none, 1e-4) == float('inf')
    once = tuple(values[:1] for values in ours)
    assert objects_differ(ours, once, 1e-4) == objects_differ(once, ours, 1e-4) == float('inf')
