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
from hostile_files import Hostile
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from published_names import published_state_dict
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
from cyclemlp_mm.weights import (
    allow_unsafe_loading,
    init_from_checkpoint,
    install_safe_loading,
    read_checkpoint,
)

FAMILIES = {'CycleMLP': CycleMLP, 'MPViT': MPViT}
ROW = dict(widths=(8, 16, 24, 32), mlp_ratios=(1, 1, 1, 1), reweight=True, downsample='conv')
SMALL, LARGE = dict(ROW, depths=(1, 1, 1, 1)), dict(ROW, depths=(1, 2, 2, 1))
EXPECTED = r'does not fit.*depths 1-2-2-1.*depths 1-1-1-1.*unknown'


@pytest.mark.parametrize('family', FAMILIES)
def test_every_ordered_pair(family):
    kind = FAMILIES[family]
    with torch.device('meta'):  # names and shapes are all that matters
        archs = {arch: kind(arch) for arch in kind.arch_zoo}
    for arch, other in itertools.permutations(archs, 2):
        model, state_dict = nn.ModuleDict({'backbone': archs[arch]}), archs[other].state_dict()
        whole = {f'backbone.{name}': tensor for name, tensor in state_dict.items()}
        with pytest.raises(CheckpointError, match=r'x\.pth does not fit.*right arch'):
            archs[arch].check_fit(state_dict, 'x.pth')
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


def test_other_surplus_is_an_error_too():
    mpvit = MPViT(dict(depths=(1, 1, 1, 1), widths=ROW['widths'], paths=(2, 2, 2, 2), mlp_ratio=1))
    mpvit.check_fit({**mpvit.state_dict(), 'head.weight': torch.ones(2, 32)}, 'x')
    for model, name in (
        (mpvit, 'stages.0.paths.2.position.weight'),
        (mpvit, 'relative_position'),
        (mpvit, 'norm.weight'),
        (CycleMLP(SMALL), 'stages.4.0.norm1.weight'),
    ):
        with pytest.raises(CheckpointError, match=f'1 are unknown.*{name}'):
            model.check_fit({**model.state_dict(), name: torch.ones(1)}, 'x')


class Detector(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone, self.head = CycleMLP(arch), nn.Linear(2, 2)


@pytest.fixture
def safe_loading(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    install_safe_loading()


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
    backbone = CycleMLP(LARGE)
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
    """A RetinaNet's config, the file of one with a deeper backbone, and one that runs code."""
    folder = tmp_path_factory.mktemp('detectors')
    config, checkpoint = save_detector(folder)
    cfg = load_config(str(config))
    init_default_scope('mmdet')
    cfg.model.backbone.arch = LARGE
    state_dict = MODELS.build(cfg.model).state_dict()
    content = torch.load(checkpoint, weights_only=False)
    torch.save(dict(content, state_dict=state_dict), folder / 'large.pth')
    content['meta']['seed'] = Hostile(folder / 'was_run')
    torch.save(content, folder / 'hostile.pth')
    return folder, str(config)


def init_by_mmdet(config, file, data, out):
    from mmdet.apis import init_detector

    init_detector(config, file, device='cpu')


def infer_by_mmdet(config, file, data, out):
    from mmdet.apis import DetInferencer

    DetInferencer(config, file, device='cpu')


def predict_in_the_page(config, file, data, out):
    page = Workbench([ModelChoice('toy', Path(config), (Path(file),))], 'cpu')
    page.predict('toy', Path(file).name, np.zeros((64, 64, 3), np.uint8))


def by(tool, *arguments):
    """A call of a tool in which CONFIG, FILE, DATA, IMAGE and OUT are replaced."""

    def run(config, file, data, out):
        image = next((data / 'val2017').iterdir())
        words = dict(CONFIG=config, FILE=file, DATA=data, IMAGE=image, OUT=out)
        given = arguments
        for word, path in words.items():
            given = [argument.replace(word, str(path)) for argument in given]
        tool(given)

    return run


TRAIN = ['CONFIG', '--data', 'DATA', '--work-dir', 'OUTwd', '--skip-check']
DOORS = {
    'predictor': lambda config, file, data, out: Predictor(config, file, device='cpu'),
    'page': predict_in_the_page,
    'export': by(export, 'CONFIG', 'FILE', 'OUT.onnx'),
    'export of the backbone': by(export, 'CONFIG', 'FILE', 'OUT.onnx', '--part', 'backbone'),
    'features': by(visualize, 'features', 'CONFIG', 'FILE', 'IMAGE', '--out', 'OUT.png'),
    'gallery': by(visualize, 'gallery', 'CONFIG', 'FILE', '--data', 'DATA', '--out', 'OUT.png'),
    'field': by(
        visualize,
        *('field', 'CONFIG', '--weights', 'FILE', '--size', '64', '--number', '1'),
        *('--out', 'OUT.png'),
    ),
    'test': by(run_test, 'CONFIG', 'FILE', '--data', 'DATA', '--work-dir', 'OUTwd'),
    'load_from': by(train, *TRAIN, '--cfg-options', 'load_from=FILE'),
    'resume': by(train, *TRAIN, '--resume', 'FILE'),
    'init_detector': init_by_mmdet,
    'DetInferencer': infer_by_mmdet,
}


@pytest.mark.parametrize('door', DOORS)
def test_every_way_to_load_it_refuses(door, detectors, tmp_path):
    data, (folder, config) = write_coco(tmp_path / 'data', 2, 2, (64, 64)), detectors
    for name, expected in (('hostile', 'is refused: it holds .*mkdir'), ('large', EXPECTED)):
        if door == 'resume' and name == 'large':
            expected = 'does not fit|cannot be resumed'
        with pytest.raises(CheckpointError, match=rf'{name}\.pth.* {expected}'):
            DOORS[door](config, str(folder / f'{name}.pth'), data, str(tmp_path / 'out'))
    assert not list(tmp_path.glob('out*.*')) and not (folder / 'was_run').exists()


@pytest.mark.parametrize('option', [['--unsafe-load'], ['--cfg-options', 'unsafe_load=True']])
def test_both_options_of_unsafe_loading_warn(option, detectors, tmp_path, monkeypatch):
    folder, config = detectors
    monkeypatch.chdir(tmp_path)
    data = write_coco(tmp_path / 'data', 2, 2, (64, 64))
    try:
        with pytest.warns(UserWarning, match=r'hostile\.pth is unpickled although safe loading'):
            run_test([config, str(folder / 'hostile.pth'), '--data', str(data), *option])
    finally:
        allow_unsafe_loading(False)
    (folder / 'was_run').rmdir()


# A run that is resumed: what it saves is the same wherever it is loaded

DEMO = 'retinanet_cyclemlp_demo'
TINY = [*TINY_DETECTOR, *TINY_BACKBONE, 'randomness.seed=0', 'val_evaluator.classwise=False']


def log_of(folder):
    """The text of the newest log in a work dir."""
    return max(folder.glob('2*/*.log'), key=lambda path: path.stat().st_mtime).read_text()


@pytest.mark.slow
def test_resumed_tested_converted_and_tested_again_it_is_the_same(tmp_path):
    work_dir, found = tmp_path / 'wd', []
    common = [DEMO, '--data', str(write_coco(tmp_path / 'shapes', 4, 2, (64, 64)))]
    common += ['--work-dir', str(work_dir)]
    train([*common, '--cfg-options', *TINY])
    train([*common, '--resume', '--cfg-options', *TINY, 'train_cfg.max_epochs=2'])
    assert 'resumed epoch: 1, iter: 2' in log_of(work_dir)
    assert re.search(r'loaded (\d+) of \1 tensors from', log_of(work_dir))
    trained = str(work_dir / 'epoch_2.pth')
    content = read_checkpoint(trained)
    assert content['meta']['epoch'] == 2 and content['optimizer']['state']
    assert content['message_hub']['log_scalars']['train/loss'].data[0].size == 4
    for file in (trained, str(tmp_path / 'new.pth'), str(tmp_path / 'new.safetensors')):
        if file != trained:
            convert_weights([trained, file])
        out = ['--out', f'{file}.pkl', '--work-dir', str(tmp_path / 'test')]
        options = ['--cfg-options', 'model.test_cfg.score_thr=0.0']
        run_test([str(work_dir / f'{DEMO}.py'), file, *out, *options])
        assert re.search(rf'loaded (\d+) of \1 tensors from {file}', log_of(tmp_path / 'test'))
        with open(f'{file}.pkl', 'rb') as opened:
            found.append([sample['pred_instances'] for sample in pickle.load(opened)])
    assert all(instances['scores'].numel() for instances in found[0])
    for others in found[1:]:
        for expected, instances in zip(found[0], others, strict=True):
            assert all(torch.equal(expected[key], instances[key]) for key in expected)
