"""docs/add_a_backbone.md, followed to the letter: its files are taken out of it and used."""

import importlib
import re
import shutil
import sys

import pytest
import torch
from paths import ROOT

TEXT = (ROOT / 'docs' / 'add_a_backbone.md').read_text()


@pytest.fixture(scope='module')
def family(tmp_path_factory):
    """The files of the page, the first beside the package's own; returns (module, config)."""
    folder = tmp_path_factory.mktemp('checkout')
    files = dict(re.findall(r'```python\n# (\S+\.py)\n(.*?)```', TEXT, re.DOTALL))
    assert len(files) == 2
    shutil.copytree(ROOT / 'configs' / '_base_', folder / 'configs' / '_base_')
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    import cyclemlp_mm.models

    module, config = files
    cyclemlp_mm.models.__path__.append(str(folder / 'cyclemlp_mm' / 'models'))
    name = module.removesuffix('.py').replace('/', '.')
    yield importlib.import_module(name), folder / config
    cyclemlp_mm.models.__path__.pop()
    sys.modules.pop(name)


def test_it_is_a_backbone_like_the_others(family, tmp_path):
    from mmengine.registry import MODELS

    model = MODELS.build(dict(type='PoolToy', arch='xs', out_indices=(1, -1), frozen_stages=1))
    assert model.out_channels == (32, 96) and model.out_strides == (8, 32)
    model.train()
    levels = model(torch.randn(2, 3, 75, 101))
    assert [level.shape[:2] for level in levels] == [(2, 32), (2, 96)]
    sum(level.square().mean() for level in levels).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(('stem.', 'stages.0.', 'downsamples.0.'))
        assert (parameter.grad is None) == frozen, name
    with pytest.raises(ValueError, match="PoolToy has no arch 'xl'; it has xs, s"):
        MODELS.build(dict(type='PoolToy', arch='xl'))


def test_its_weights_load_strictly(family, tmp_path, log_lines):
    from cyclemlp_mm.errors import CheckpointError

    module, _ = family
    first = module.PoolToy('xs')
    torch.save(first.state_dict(), tmp_path / 'toy.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'toy.pth'))
    second = module.PoolToy('xs', init_cfg=cfg)
    second.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    total = len(first.state_dict())
    assert any(f'loaded {total} of {total} tensors' in line for line in log_lines)
    shorter = module.PoolToy('xs', out_indices=(0, 1), init_cfg=cfg)
    shorter.init_weights()
    assert torch.equal(shorter.stem.proj.weight, first.stem.proj.weight)
    deeper = dict(depths=(1, 2, 1, 1), widths=(16, 32, 64, 96))
    with pytest.raises(CheckpointError, match='tensors are missing'):
        module.PoolToy(deeper, init_cfg=cfg).init_weights()


def test_its_weights_load_into_a_detector(family, tmp_path):
    pytest.importorskip('mmdet')
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.runner import load_checkpoint

    from cyclemlp_mm.engine import load_config, require_toolbox

    first = family[0].PoolToy('xs')
    torch.save(first.state_dict(), tmp_path / 'toy.pth')
    cfg = load_config(str(family[1]))
    init_default_scope(require_toolbox(cfg))
    model = MODELS.build(cfg.model)
    load_checkpoint(model, str(tmp_path / 'toy.pth'), 'cpu')
    assert torch.equal(model.backbone.stem.proj.weight, first.stem.proj.weight)


def test_its_config_trains_and_predicts(family):
    pytest.importorskip('mmdet')
    from mmengine.registry import MODELS, init_default_scope

    from cyclemlp_mm.engine import load_config, require_toolbox

    cfg = load_config(str(family[1]))
    init_default_scope(require_toolbox(cfg))
    from mmdet.testing import demo_mm_inputs

    model = MODELS.build(cfg.model).train()
    batch = demo_mm_inputs(1, [[3, 64, 64]], num_classes=2)
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert torch.isfinite(loss)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        [result] = model.eval().test_step(batch)
    assert result.pred_instances.bboxes.shape[1] == 4
