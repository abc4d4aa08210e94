"""Every way to load a file: completely, or, of another arch, not at all, though blocks would fit.

Trained, resumed, tested, converted and loaded elsewhere, a model is the same.
"""

import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from published_names import published_state_dict
from test_paddle import write_pdparams
from torch import nn
from toy_models import save_detector
from toy_runs import TINY_BACKBONE, TINY_DETECTOR

from cyclemlp_mm.apis.convert_weights import convert_weights
from cyclemlp_mm.apis.export import export
from cyclemlp_mm.apis.test import test as run_test
from cyclemlp_mm.apis.train import train
from cyclemlp_mm.apis.visualize import visualize
from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.engine.hooks.check_weights import compare
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.inference import Predictor
from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.web import ModelChoice, Workbench
from cyclemlp_mm.weights import init_from_checkpoint, install_safe_loading, read_checkpoint

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


def init_by_mmdet(config, file, data, out):
    from mmdet.apis import init_detector

    init_detector(config, file, device='cpu')


def infer_by_mmdet(config, file, data, out):
    from mmdet.apis import DetInferencer

    DetInferencer(config, file, device='cpu')


def predict_in_the_page(config, file, data, out):
    page = Workbench([ModelChoice('toy', Path(config), (Path(file),))], 'cpu')
    page.predict('toy', Path(file).name, np.zeros((64, 64, 3), np.uint8))


def train_with(*options):
    def run(config, file, data, out):
        given = [option.replace('FILE', file) for option in options]
        train([config, '--data', str(data), '--work-dir', f'{out}wd', '--skip-check', *given])

    return run


def draw(command, *arguments):
    def run(config, file, data, out):
        image = next((data / 'val2017').iterdir())
        paths = dict(CONFIG=config, FILE=file, DATA=data, IMAGE=image)
        given = [str(paths.get(argument, argument)) for argument in arguments]
        visualize([command, *given, '--out', f'{out}.png'])

    return run


DOORS = {
    'predictor': lambda config, file, data, out: Predictor(config, file, device='cpu'),
    'page': predict_in_the_page,
    'export': lambda config, file, data, out: export([config, file, f'{out}.onnx']),
    'export of the backbone': lambda config, file, data, out: export(
        [config, file, f'{out}.onnx', '--part', 'backbone']
    ),
    'features': draw('features', 'CONFIG', 'FILE', 'IMAGE'),
    'gallery': draw('gallery', 'CONFIG', 'FILE', '--data', 'DATA'),
    'field': draw('field', 'CONFIG', '--weights', 'FILE', '--size', '64', '--number', '1'),
    'test': lambda config, file, data, out: run_test(
        [config, file, '--data', str(data), '--work-dir', f'{out}wd']
    ),
    'load_from': train_with('--cfg-options', 'load_from=FILE'),
    'resume': train_with('--resume', 'FILE'),
    'init_detector': init_by_mmdet,
    'DetInferencer': infer_by_mmdet,
}


@pytest.mark.parametrize('door', DOORS)
def test_every_way_to_load_it_refuses(door, detectors, tmp_path):
    data = write_coco(tmp_path / 'data', 2, 2, (64, 64))
    expected = 'does not fit|cannot be resumed' if door == 'resume' else EXPECTED
    with pytest.raises(CheckpointError, match=expected):
        DOORS[door](*detectors, data, str(tmp_path / 'out'))
    assert not list(tmp_path.glob('out*.*'))


def test_conversion_takes_the_arch_from_the_file(detectors, tmp_path, capsys):
    """It has no config to fit: all is converted, or, with a tensor of another arch, nothing."""
    convert_weights([detectors[1], str(tmp_path / 'y.pth')])
    assert 'depths 1-2-2-1' in capsys.readouterr().out
    state_dict = torch.load(detectors[1])['state_dict']
    assert torch.load(tmp_path / 'y.pth')['state_dict'].keys() == state_dict.keys()
    for name in ('stages.1.5.norm1.weight', 'stages.4.0.norm1.weight'):
        torch.save({**state_dict, f'backbone.{name}': torch.ones(16)}, tmp_path / 'odd.pth')
        with pytest.raises(CheckpointError, match=r'odd\.pth (does not fit|is of no)'):
            convert_weights([str(tmp_path / 'odd.pth'), str(tmp_path / 'z.pth')])


def test_mmpretrains_get_model(tmp_path):
    mmpretrain = pytest.importorskip('mmpretrain')
    cfg = load_config('cyclemlp_demo')
    cfg.model.backbone.arch = SMALL
    cfg.model.head.in_channels = 32
    state_dict = published_state_dict(CycleMLP(LARGE, out_indices=(3,)), classifier=4)
    torch.save({'model': state_dict}, tmp_path / 'large.pth')
    with pytest.raises(CheckpointError, match=rf'large\.pth {EXPECTED}'):
        mmpretrain.get_model(cfg, pretrained=str(tmp_path / 'large.pth'))


# A run that is resumed: what it saves is the same wherever it is loaded

DEMO = 'retinanet_cyclemlp_demo'
TINY = [*TINY_DETECTOR, *TINY_BACKBONE, 'randomness.seed=0', 'val_evaluator.classwise=False']
CHAIN_ARCH = dict(ROW, depths=(1, 1, 1, 1), widths=(8, 64, 128, 192))


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    """A run of one epoch that was resumed for a second one."""
    folder = tmp_path_factory.mktemp('chain')
    data = str(write_coco(folder / 'shapes', 4, 2, (64, 64)))
    common = [DEMO, '--data', data, '--work-dir', str(folder / 'wd')]
    train([*common, '--cfg-options', *TINY])
    train([*common, '--resume', '--cfg-options', *TINY, 'train_cfg.max_epochs=2'])
    return folder


def log_of(folder):
    """The text of the newest log in a work dir."""
    return max(folder.glob('2*/*.log'), key=lambda path: path.stat().st_mtime).read_text()


@pytest.mark.slow
def test_resume_loads_safely_and_all(chain):
    assert 'resumed epoch: 1, iter: 2' in log_of(chain / 'wd')
    assert re.search(r'loaded (\d+) of \1 tensors from', log_of(chain / 'wd'))
    content = read_checkpoint(chain / 'wd' / 'epoch_2.pth')
    assert content['meta']['epoch'] == 2 and content['optimizer']['state']
    assert content['message_hub']['log_scalars']['train/loss'].data[0].size == 4


@pytest.mark.slow
def test_tested_converted_and_tested_again_it_is_the_same(chain, tmp_path):
    trained, found = str(chain / 'wd' / 'epoch_2.pth'), []
    for file in (trained, str(tmp_path / 'new.pth'), str(tmp_path / 'new.safetensors')):
        if file != trained:
            convert_weights([trained, file])
        out = ['--out', f'{file}.pkl', '--work-dir', str(tmp_path / 'test')]
        options = ['--cfg-options', 'model.test_cfg.score_thr=0.0']
        run_test([str(chain / 'wd' / f'{DEMO}.py'), file, *out, *options])
        assert re.search(rf'loaded (\d+) of \1 tensors from {file}', log_of(tmp_path / 'test'))
        with open(f'{file}.pkl', 'rb') as opened:
            found.append([sample['pred_instances'] for sample in pickle.load(opened)])
    assert all(instances['scores'].numel() for instances in found[0])
    for others in found[1:]:
        for expected, instances in zip(found[0], others, strict=True):
            assert all(torch.equal(expected[key], instances[key]) for key in expected)


@pytest.mark.slow
def test_loaded_elsewhere(chain, tmp_path):
    """As a backbone, and in mmdet's inference API, from a published-format file, too."""
    from mmdet.apis import init_detector

    trained = str(chain / 'wd' / 'epoch_2.pth')
    expected = torch.load(trained, weights_only=False)['state_dict']
    convert_weights([trained, str(tmp_path / 'published.pth'), '--to', 'published'])
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pth'))
    backbone = CycleMLP(CHAIN_ARCH, out_indices=(1, 2, 3), init_cfg=init_cfg)
    backbone.init_weights()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, expected[f'backbone.{name}']), name
    convert_weights([trained, str(tmp_path / 'd.safetensors')])
    config = chain / 'wd' / f'{DEMO}.py'
    detector = init_detector(str(config), str(tmp_path / 'd.safetensors'), device='cpu')
    assert all(torch.equal(tensor, expected[n]) for n, tensor in detector.state_dict().items())
    classes = load_config(config).train_dataloader.dataset.metainfo.classes
    assert list(detector.dataset_meta['classes']) == list(classes)


@pytest.mark.slow
def test_load_from_takes_a_paddle_classifier(chain, tmp_path):
    """Loaded where it belongs, the heads logged as new."""
    file = tmp_path / 'paddle.pdparams'
    write_pdparams(file, published_state_dict(CycleMLP(CHAIN_ARCH), classifier=10))
    common = [DEMO, '--data', str(chain / 'shapes'), '--work-dir', str(tmp_path / 'wd')]
    train([*common, '--cfg-options', *TINY, f'load_from={file}'])
    log = log_of(tmp_path / 'wd')
    assert re.search(rf'loaded \d+ of \d+ tensors from {file}', log)
    assert re.search(r'bbox_head: 0 of \d+, the others are new', log)
    assert 'Epoch(train)' in log
