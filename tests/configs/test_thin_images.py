"""Segmentors predict images smaller than the backbone's coarsest stride, in their own size."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from cyclemlp_mm.engine import load_config

SegDataSample = pytest.importorskip('mmseg.structures').SegDataSample


def build(name, padded):
    cfg = load_config(name)
    init_default_scope('mmseg')
    cfg.model.backbone.init_cfg = None
    if not padded:
        cfg.model.data_preprocessor.test_cfg = None
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def predict(model, image):
    size = tuple(image.shape[1:])
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    with torch.no_grad():
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0]


@pytest.mark.parametrize(
    'name', ['fpn_cyclemlp_b1_512x512_40k_ade20k', 'upernet_cyclemlp_b1_512x512_160k_ade20k']
)
def test_small_and_thin_images(name):
    model, as_it_is = build(name, padded=True), build(name, padded=False)
    for height, width in [(1, 1), (31, 33), (3, 200), (200, 5)]:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        result = predict(model, image)
        assert result.pred_sem_seg.data.shape == (1, height, width)
        assert result.seg_logits.data.isfinite().all()
        with pytest.raises(ValueError, match='at least 32x32'):
            predict(as_it_is, image)
    image = torch.randint(0, 256, (3, 45, 70), dtype=torch.uint8)  # nothing to pad
    assert torch.equal(
        predict(model, image).seg_logits.data, predict(as_it_is, image).seg_logits.data
    )
