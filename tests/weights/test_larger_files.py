"""A file of another arch never loads, through whatever door, though its first blocks would fit."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from PIL import Image
from published_names import published_state_dict
from torch import nn
from toy_models import save_detector

from cyclemlp_mm.apis.convert_weights import convert_weights
from cyclemlp_mm.apis.export import export
from cyclemlp_mm.apis.test import test as run_test
from cyclemlp_mm.apis.train import train
from cyclemlp_mm.apis.visualize import visualize
from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.engine.check_weights import compare
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.inference import Predictor
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.web.catalogue import ModelChoice
from cyclemlp_mm.web.workbench import Workbench
from cyclemlp_mm.weights import init_from_checkpoint, install_safe_loading

FAMILIES = {'CycleMLP': CycleMLP, 'MPViT': MPViT}
PAIRS = [
    (family, small, large)
    for family, kind in FAMILIES.items()
    for small, large in itertools.permutations(kind.arch_zoo, 2)
]
ROW = dict(widths=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1), reweight=True, downsample='conv')
SMALL, LARGE = dict(ROW, depths=(1, 1, 1, 1)), dict(ROW, depths=(1, 2, 2, 1))
EXPECTED = r'does not fit.*depths 1-2-2-1.*depths 1-1-1-1.*unknown'


@pytest.fixture(scope='module')
def archs():
    """Every arch of both families, without memory, as names and shapes are all that matters."""
    with torch.device('meta'):
        return {
            (name, arch): kind(arch) for name, kind in FAMILIES.items() for arch in kind.arch_zoo
        }


@pytest.mark.parametrize('family, arch, other', PAIRS)
def test_every_ordered_pair(family, arch, other, archs):
    state_dict = archs[family, other].state_dict()
    model = nn.Sequential()
    model.backbone = archs[family, arch]
    whole = {f'backbone.{name}': tensor for name, tensor in state_dict.items()}
    with pytest.raises(CheckpointError, match=r'x\.pth does not fit.*right arch'):
        archs[family, arch].check_fit(state_dict, 'x.pth')
    for complete in (True, False):
        with pytest.raises(CheckpointError, match=r'x\.pth does not fit'):
            compare(model, whole, 'x.pth', complete)


@pytest.mark.parametrize('levels', [(0,), (0, 1), (1, 2)])
def test_stages_left_out_must_be_of_the_same_arch(levels):
    """Stage 0 of B1 and B2 has two blocks in both; stages 1 and 2 have not."""
    with torch.device('meta'):
        b1, b2 = CycleMLP('b1', out_indices=levels), CycleMLP('b2').state_dict()
        b1.check_fit(CycleMLP('b1').state_dict(), 'x')
        b1.check_fit(CycleMLP('b1', out_indices=levels).state_dict(), 'x')
    with pytest.raises(CheckpointError, match='are unknown'):
        b1.check_fit(b2, 'x')


def test_a_stage_that_the_arch_does_not_have():
    model = CycleMLP(SMALL)
    state_dict = {**model.state_dict(), 'stages.4.0.norm1.weight': torch.ones(8)}
    with pytest.raises(CheckpointError, match=r'1 are unknown.*stages\.4'):
        model.check_fit(state_dict, 'x')


def test_other_surplus_is_an_error_too():
    row = dict(depths=(1, 1, 1, 1), widths=(8, 16, 24, 32), paths=(2, 2, 2, 2), mlp_ratio=1)
    model = MPViT(row)
    state_dict = model.state_dict()
    model.check_fit({**state_dict, 'head.weight': torch.ones(2, 32)}, 'x')
    for name in ('stages.0.paths.2.position.weight', 'relative_position', 'norm.weight'):
        with pytest.raises(CheckpointError, match=f'1 are unknown.*{name}'):
            model.check_fit({**state_dict, name: torch.ones(1)}, 'x')


class Detector(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone, self.head = CycleMLP(arch), nn.Linear(2, 2)


@pytest.fixture
def safe_loading():
    schemes = dict(CheckpointLoader._schemes)
    install_safe_loading()
    yield
    CheckpointLoader._schemes = schemes


def test_mmengines_loader_without_ours(tmp_path, monkeypatch):
    """A config of a user may name cyclemlp_mm only; published names are not known then."""
    loader = vars(mmengine_checkpoint)['load_from_local']
    monkeypatch.setitem(CheckpointLoader._schemes, '', loader)
    torch.save(Detector(LARGE).state_dict(), tmp_path / 'large.pth')
    torch.save(published_state_dict(CycleMLP(SMALL)), tmp_path / 'published.pth')
    model = Detector(SMALL)
    for file, why in (('large', EXPECTED), ('published', 'no tensor whose name begins')):
        with pytest.raises(CheckpointError, match=why):
            load_checkpoint(model, str(tmp_path / f'{file}.pth'))
    load_checkpoint(Detector(LARGE), str(tmp_path / 'large.pth'))


@pytest.mark.usefixtures('safe_loading')
@pytest.mark.parametrize('wrapped', [True, False])
@pytest.mark.parametrize('published', [True, False])
def test_mmengines_loader_and_init_cfg(published, wrapped, tmp_path, monkeypatch):
    """What get_model, init_detector, init_model and all inferencers call."""
    monkeypatch.chdir(tmp_path)
    source = Detector(LARGE)
    backbone = source.backbone
    names = published_state_dict(backbone, classifier=7) if published else backbone.state_dict()
    torch.save({'state_dict': names} if wrapped else names, 'large.pth')
    model = Detector(SMALL)
    with pytest.raises(CheckpointError, match=rf'checkpoint large\.pth {EXPECTED}'):
        load_checkpoint(model, 'large.pth')
    with pytest.raises(CheckpointError, match=rf'checkpoint large\.pth {EXPECTED}'):
        init_from_checkpoint(model.backbone, CycleMLP.published_format, 'large.pth')
    load_checkpoint(Detector(LARGE), 'large.pth')


def test_pytorchs_own_loading_stays_as_it_is():
    small, large = CycleMLP(SMALL), CycleMLP(LARGE)
    with pytest.raises(RuntimeError, match='Unexpected key'):
        small.load_state_dict(large.state_dict())
    unexpected = small.load_state_dict(large.state_dict(), strict=False).unexpected_keys
    assert len(unexpected) == len(large.state_dict()) - len(small.state_dict())


def test_a_file_of_lora_alone(tmp_path, log_lines):
    """mmpretrain's LoRAModel saves nothing else."""
    lora = pytest.importorskip('mmpretrain.models.peft.lora')
    model = lora.LoRAModel(
        dict(type='CycleMLP', arch=SMALL), rank=2, targets=[dict(type='.*mixer.proj')]
    )
    torch.save({n: torch.ones_like(t) for n, t in model.state_dict().items()}, tmp_path / 'l.pth')
    load_checkpoint(model, str(tmp_path / 'l.pth'), revise_keys=[('^$', '')])
    assert all(torch.equal(t, torch.ones_like(t)) for t in model.state_dict().values())
    assert not any('do not match' in line for line in log_lines)


@pytest.fixture(scope='module')
def detectors(tmp_path_factory):
    """Two RetinaNets that differ in the depths of their backbones."""
    folder = tmp_path_factory.mktemp('detectors')
    config, checkpoint = save_detector(folder)
    cfg = load_config(str(config))
    init_default_scope('mmdet')
    cfg.model.backbone.arch = LARGE
    state_dict = MODELS.build(cfg.model).state_dict()
    meta = torch.load(checkpoint, weights_only=False)['meta']
    torch.save(dict(state_dict=state_dict, meta=meta), folder / 'large.pth')
    return str(config), str(folder / 'large.pth')


def test_inference_web_and_export(detectors, tmp_path):
    with pytest.raises(CheckpointError, match=EXPECTED):
        Predictor(*detectors, device='cpu')
    page = Workbench([ModelChoice('toy', Path(detectors[0]), (Path(detectors[1]),))], 'cpu')
    with pytest.raises(CheckpointError, match=EXPECTED):
        page.predict('toy', 'large.pth', np.zeros((64, 64, 3), np.uint8))
    for part in ([], ['--part', 'backbone']):
        with pytest.raises(CheckpointError, match=EXPECTED):
            export([*detectors, str(tmp_path / 'x.onnx'), *part])


@pytest.mark.parametrize('command', ['features', 'gallery', 'field'])
def test_pictures(command, detectors, tmp_path):
    config, large = detectors
    Image.new('RGB', (64, 64)).save(tmp_path / 'x.png')
    arguments = dict(
        features=[config, large, tmp_path / 'x.png'],
        gallery=[config, large, '--data', write_coco(tmp_path / 'data', 2, 2, (64, 64))],
        field=[config, '--weights', large, '--size', 64, '--number', 1],
    )[command]
    with pytest.raises(CheckpointError, match=EXPECTED):
        visualize([command, *map(str, arguments), '--out', str(tmp_path / 'y.png')])
    assert not (tmp_path / 'y.png').exists()


def test_conversion_takes_the_arch_from_the_file(detectors, tmp_path, capsys):
    """It has no config to fit: all is converted, or, with a tensor of another arch, nothing."""
    convert_weights([detectors[1], str(tmp_path / 'y.pth')])
    assert 'depths 1-2-2-1' in capsys.readouterr().out
    state_dict = torch.load(detectors[1])['state_dict']
    assert torch.load(tmp_path / 'y.pth')['state_dict'].keys() == state_dict.keys()
    for name in ('stages.1.5.norm1.weight', 'stages.4.0.norm1.weight'):
        torch.save({**state_dict, f'backbone.{name}': torch.ones(16)}, tmp_path / 'odd.pth')
        with pytest.raises(CheckpointError, match=r'odd\.pth (looks like CycleMLP|is of no)'):
            convert_weights([str(tmp_path / 'odd.pth'), str(tmp_path / 'z.pth')])


def test_testing_load_from_and_resume(detectors, tmp_path):
    config, large = detectors
    data = ['--data', str(write_coco(tmp_path / 'data', 2, 2, (64, 64)))]
    with pytest.raises(CheckpointError, match=EXPECTED):
        run_test([config, large, *data, '--work-dir', str(tmp_path / 'test')])
    for name, options in (
        ('load_from', ['--cfg-options', f'load_from={large}']),
        ('resume', ['--resume', large]),
    ):
        with pytest.raises(CheckpointError, match=r'does not fit|cannot be resumed'):
            train([config, *data, '--work-dir', str(tmp_path / name), '--skip-check', *options])


def test_the_toolboxes_own_apis(detectors):
    from mmdet.apis import DetInferencer, init_detector

    with pytest.raises(CheckpointError, match=EXPECTED):
        init_detector(*detectors, device='cpu')
    with pytest.raises(CheckpointError, match=EXPECTED):
        DetInferencer(*detectors, device='cpu')


def test_mmpretrains_get_model(tmp_path):
    mmpretrain = pytest.importorskip('mmpretrain')
    cfg = load_config('cyclemlp_demo')
    cfg.model.backbone.arch = SMALL
    cfg.model.head.in_channels = 32
    state_dict = published_state_dict(CycleMLP(LARGE, out_indices=(3,)), classifier=4)
    torch.save({'model': state_dict}, tmp_path / 'large.pth')
    with pytest.raises(CheckpointError, match=rf'large\.pth {EXPECTED}'):
        mmpretrain.get_model(cfg, pretrained=str(tmp_path / 'large.pth'))
