"""Segmentors predict images smaller than the backbone's coarsest stride, in their own size."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from cyclemlp_mm.engine import load_config

SegDataSample = pytest.importorskip('mmseg.structures').SegDataSample


def build(**preprocessor):
    cfg = load_config('fpn_cyclemlp_b1_512x512_40k_ade20k')
    init_default_scope('mmseg')
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.update(preprocessor)
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def predict(model, height, width):
    image = torch.full((3, height, width), 7, dtype=torch.uint8)
    sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
    with torch.no_grad():
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0]


def test_small_and_thin_images():
    model, as_it_is = build(), build(test_cfg=None)
    for size in [(1, 1), (31, 33), (3, 200), (200, 5)]:
        result = predict(model, *size)
        assert result.pred_sem_seg.data.shape == (1, *size)
        assert result.seg_logits.data.isfinite().all()
        with pytest.raises(ValueError, match='at least 32x32'):
            predict(as_it_is, *size)
    # nothing to pad
    padded, plain = (predict(m, 45, 70).seg_logits.data for m in (model, as_it_is))
    assert torch.equal(padded, plain)
