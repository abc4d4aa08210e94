"""FSDP, by two processes without a GPU: the same numbers as whole models, resumed and tested."""

import json
import re
import sys
from importlib.util import find_spec

import pytest
import torch
from old_torch import new_torch_only
from paths import ROOT
from prove_resume import final_state, same
from test_distributed import DIST_TRAIN, IMPORTS, TESTS, largest_difference, run

from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco
from cyclemlp_mm.engine import configs_dir
from cyclemlp_mm.weights import read_checkpoint

# PyTorch 2.1's gloo lacks what FSDP asks of it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), new_torch_only]
SHARDED = f"'{configs_dir()}/_base_/strategies/fsdp.py'"
HEAD = IMPORTS + "custom_hooks = [dict(type='KeepMeanLoss')]\nrandomness = dict(seed=0)\n"
ARCH = """dict(
        _delete_=True, depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), mlp_ratios=(2, 2, 2, 2),
        reweight=True, downsample='conv')"""
DETECTOR = f"""
model = dict(
    backbone=dict(arch={ARCH}, drop_path_rate=0.2),
    neck=dict(in_channels=[16, 24, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1))
train_dataloader = dict(batch_size=2, num_workers=1)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=3, val_interval=2)
# The tolerances below are for this rate: AdamW moves a weight by up to the rate where only rounding
# makes a gradient differ from zero.
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=0.5))
"""
SEGMENTOR = f"""
model = dict(
    backbone=dict(arch={ARCH}),
    neck=dict(in_channels=[8, 16, 24, 32], out_channels=16),
    decode_head=dict(in_channels=[16, 16, 16, 16], channels=16, norm_cfg=dict(type='BN')),
    data_preprocessor=dict(size=(64, 64)))
train_dataloader = dict(batch_size=2, num_workers=1)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=8, val_interval=8)
default_hooks = dict(checkpoint=dict(interval=8))
"""


def write_config(folder, name, base, settings, sharded):
    bases = f"['{configs_dir()}/{base}.py'{', ' + SHARDED if sharded else ''}]"
    (folder / f'{name}.py').write_text(f'_base_ = {bases}\n{settings}{HEAD}')


def train(folder, name, *arguments, check=True, data='shapes'):
    argv = [f'{name}.py', 2, '--data', data, '--work-dir', name, *arguments]
    return run([DIST_TRAIN, *argv], folder, check=check)


def losses(work_dir):
    return json.loads((work_dir / 'losses.json').read_text())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a detector trained sharded and whole, in the work dirs 'parts' and 'whole'."""
    folder = tmp_path_factory.mktemp('sharded')
    write_coco(folder / 'shapes', 24, 5, (64, 64))
    for name in ('parts', 'whole'):
        write_config(folder, name, 'retinanet_cyclemlp_demo', DETECTOR, sharded=name == 'parts')
        train(folder, name)
        saved = (folder / name / f'{name}.py').read_text()
        assert ('ShardedStrategy' in saved) == (name == 'parts')
    return folder


def test_backbones_give_the_levels_and_gradients_of_whole_ones():
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    done = run([*torchrun, TESTS / 'sharded_backbones.py'], TESTS, check=False)
    found = re.findall(r'^(\w+) .*units \d+, held 0\.\d+, levels \S+, gradients', done.stdout, re.M)
    families = {'CycleMLP', 'MPViT'} | ({'RepMLP'} if find_spec('mmpretrain') else set())
    assert set(found) == families and len(found) >= 8, done.stdout[-3000:]


def test_a_detectors_losses_are_those_of_a_whole_model(trained):
    """With gradients clipped in every iteration, by the norm over all parameters."""
    parts, whole = losses(trained / 'parts'), losses(trained / 'whole')
    worst = largest_difference(parts, whole)
    print(f'largest difference of the loss over {len(parts)} iterations: {worst:.2g}')
    assert len(parts) == 18 and worst < 1e-5
    keys = [
        read_checkpoint(trained / name / 'epoch_3.pth')['state_dict'].keys()
        for name in ('parts', 'whole')
    ]
    assert keys[0] == keys[1]


def test_it_is_resumed_to_the_bit(trained):
    write_config(trained, 'again', 'retinanet_cyclemlp_demo', DETECTOR, sharded=True)
    # A signal in the middle of the second epoch, to one process.
    with (trained / 'again.py').open('a') as config:
        config.write("custom_hooks.append(dict(type='SignalAt', iteration=8))\n")
    stopped = train(trained, 'again', check=False)
    assert re.search('stopped by .* after iteration 8: saved', stopped.stdout), stopped.stdout
    [path] = (trained / 'again').glob('*iter_8.pth')
    assert read_checkpoint(path)['meta']['epoch'] == 1
    printed = train(trained, 'again', '--resume').stdout
    assert 'resumed epoch: 1, iter: 8' in printed
    assert same(final_state(trained / 'parts'), final_state(trained / 'again')) > 200
    assert not list((trained / 'again').glob('.partial*'))


@pytest.mark.parametrize(('source', 'goes_on'), [('parts', 'whole'), ('whole', 'parts')])
def test_whole_and_sharded_trainings_go_on_from_each_other(source, goes_on, trained):
    work_dir = f'{goes_on}_from_{source}'
    train(trained, goes_on, '--work-dir', work_dir, '--resume', f'{source}/epoch_2.pth')
    resumed, expected = losses(trained / work_dir), losses(trained / 'whole')[12:]
    assert largest_difference(resumed, expected) < 1e-5
    one, other = (
        read_checkpoint(trained / folder / 'epoch_3.pth')['state_dict']
        for folder in (work_dir, 'whole')
    )
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


def test_it_starts_from_weights_for_other_classes(trained):
    names = ['circle', 'square']
    options = ['load_from=whole/epoch_3.pth', 'train_cfg.max_epochs=1', 'randomness.seed=1']
    argv = ['--work-dir', 'fewer', '--classes', *names, '--cfg-options', *options]
    done = train(trained, 'parts', *argv)
    assert re.search(r'bbox_head: (\d+) of (?!\1)\d+, the others are new', done.stdout)
    assert 'FutureWarning: FSDP' not in done.stdout
    saved = read_checkpoint(trained / 'fewer' / 'epoch_1.pth')['state_dict']
    assert saved['bbox_head.retina_cls.weight'].shape[0] % len(names) == 0
    # Six steps of a rate below 2e-4 move nothing far; another seed's first weights are far off.
    source = read_checkpoint(trained / 'whole' / 'epoch_3.pth')['state_dict']
    name = 'backbone.stem.proj.weight'
    torch.testing.assert_close(saved[name], source[name], rtol=0, atol=1e-3)


def test_a_strategy_without_settings_deals_out_the_model_as_one_unit(trained):
    write_config(trained, 'bare', 'retinanet_cyclemlp_demo', DETECTOR, sharded=True)
    with (trained / 'bare.py').open('a') as config:
        config.write("strategy = dict(_delete_=True, type='ShardedStrategy')\n")
    train(trained, 'bare', '--cfg-options', 'train_cfg.max_epochs=1')
    bare = losses(trained / 'bare')
    assert largest_difference(bare, losses(trained / 'whole')[: len(bare)]) < 1e-5


def test_its_checkpoint_is_tested_by_one_process(trained):
    printed = run(
        [sys.executable, ROOT / 'tools' / 'test.py', 'parts/parts.py', 'parts/epoch_3.pth'], trained
    ).stdout
    assert re.search(r'loaded (\d+) of \1 tensors', printed)


def test_a_segmentors_losses_are_those_of_a_whole_model(tmp_path):
    write_ade20k(tmp_path / 'rooms', 8, 3, (64, 64))
    found = {}
    for name in ('parts', 'whole'):
        write_config(
            tmp_path, name, 'fpn_cyclemlp_b1_256x256_600i_small', SEGMENTOR, sharded=name == 'parts'
        )
        printed = train(tmp_path, name, data='rooms').stdout
        found[name] = losses(tmp_path / name), re.findall(r'mIoU: ([\d.]+) ', printed)[-1]
    assert largest_difference(*(loss for loss, _ in found.values())) < 1e-4
    assert found['parts'][1] == found['whole'][1]
