import copy

import pytest
import torch
from mmengine.registry import MODELS
from mpvit_cases import worst
from torch import nn

from cyclemlp_mm.errors import CheckpointError

mmpretrain_repmlp = pytest.importorskip('mmpretrain.models.backbones.repmlp')

from cyclemlp_mm.models import SyncBNOrBN, to_deploy  # noqa: E402
from cyclemlp_mm.models.repmlp import RepMLPNet  # noqa: E402 - needs mmpretrain

TINY = dict(channels=[8, 16, 32, 64], depths=[1, 2, 1, 1], sharesets_nums=[1, 4, 8, 16])
SIZES = [64, (64, 128), (128, 96)]


def randomise(model):
    """Norm statistics and parameters that a wrong fold would show."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
    return model.eval()


def test_levels_at_the_training_size_are_those_of_mmpretrains_blocks():
    theirs = randomise(mmpretrain_repmlp.RepMLPNet('base', out_indices=(3,)))
    ours = RepMLPNet('base').eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith(('norm0', 'norm1', 'norm2')) for name in missing)
    for i in range(3):
        ours.add_module(f'norm{i}', nn.Identity())
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        levels = ours(image)
        x, _ = theirs.patch_embed(image)
        for i, stage in enumerate(theirs.stages):
            x = stage(x)
            expected = theirs.final_norm(x) if i == 3 else x
            assert levels[i].shape == (2, theirs.channels[i], 56 >> i, 56 >> i)
            assert torch.equal(levels[i], expected)
            if i < 3:
                x = theirs.downsample_layers[i](x)
        assert torch.equal(levels[3], theirs(image)[0])


@pytest.mark.parametrize('img_size', SIZES)
@pytest.mark.parametrize('kernels', [(3,), (1, 3, 5), None])
def test_deploy_is_equal_and_idempotent(img_size, kernels):
    model = randomise(RepMLPNet(TINY, img_size, reparam_conv_kernels=kernels).double())
    image = torch.randn(2, 3, 70, 150, dtype=torch.float64)
    with torch.no_grad():
        before = model(image)
        model.switch_to_deploy()
        after = model(image)
        model.switch_to_deploy()
        again = model(image)
    for a, b, c in zip(before, after, again, strict=True):
        assert worst(b, a) < 1e-5 and torch.equal(b, c)
    assert not any('repconv' in name or 'fc3_bn' in name for name in model.state_dict())
    deployed = RepMLPNet(TINY, img_size, reparam_conv_kernels=kernels, deploy=True).double().eval()
    deployed.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(deployed(image), after, strict=True))


@pytest.mark.parametrize('img_size', SIZES)
@pytest.mark.parametrize('size', [(32, 32), (64, 64), (75, 101), (130, 65)])
def test_any_size(img_size, size):
    model = RepMLPNet(TINY, img_size).eval()
    levels = model(torch.randn(1, 3, *size))
    assert model.out_strides == (4, 8, 16, 32) and model.out_channels == (8, 16, 32, 64)
    for level, channels, stride in zip(levels, model.out_channels, model.out_strides):
        assert level.shape == (1, channels, *(-(-side // stride) for side in size))


def test_the_zoos_layout_loads(tmp_path, log_lines):
    theirs = mmpretrain_repmlp.RepMLPNet(TINY, 64)
    state = {f'backbone.{name}': tensor for name, tensor in theirs.state_dict().items()}
    state |= {'head.fc.weight': torch.zeros(5, 64), 'head.fc.bias': torch.zeros(5)}
    torch.save({'meta': {}, 'state_dict': state}, tmp_path / 'zoo.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'zoo.pth'))
    model = RepMLPNet(TINY, 64, init_cfg=cfg)
    model.init_weights()
    own = model.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(own[name], tensor), name
    assert any(f'loaded {len(theirs.state_dict())} of {len(own)}' in line for line in log_lines)
    RepMLPNet(TINY, 64, out_indices=(0, 1), init_cfg=cfg).init_weights()
    with pytest.raises(CheckpointError, match='another shape'):
        RepMLPNet(TINY, 128, init_cfg=cfg).init_weights()


def test_norm_cfg_reaches_every_part_and_only_what_is_returned_is_built():
    model = RepMLPNet(TINY, 64, norm_cfg=dict(type='SyncBNOrBN', eps=1e-3), out_indices=(1, 2))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 2 + 2 + 4 * 6 and all(norm.eps == 1e-3 for norm in norms)
    levels = model(torch.randn(2, 3, 64, 64))
    assert [level.shape[1] for level in levels] == [16, 32]
    sum(level.square().mean() for level in levels).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert not any('norm0' in n or 'final_norm' in n for n in model.state_dict())
    without = RepMLPNet(TINY, 64, out_norms=False)
    assert not any(n.startswith(('norm', 'final_norm')) for n in without.state_dict())


@pytest.mark.parametrize('frozen_stages', [0, 2])
def test_freezing_and_checkpointing(frozen_stages):
    model = RepMLPNet(TINY, 64, frozen_stages=frozen_stages, with_cp=True).train()
    frozen = ('patch_embed.', 'stages.0.', 'stages.1.', 'downsample_layers.0.', 'norm0.', 'norm1.')
    frozen = frozen if frozen_stages else frozen[:1]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    sum(level.square().mean() for level in model(torch.randn(2, 3, 64, 64))).backward()


def train_step(model, image):
    sum(level.square().mean() for level in model(image)).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize('momentum', [0.1, None])
def test_checkpointing_changes_nothing_but_memory(momentum):
    """None is the average over all batches: the count of them matters."""
    plain = RepMLPNet(TINY, 64, norm_cfg=dict(type='BN', momentum=momentum)).double().train()
    other = copy.deepcopy(plain)
    other.with_cp = True
    buffers = dict(other.named_buffers())
    for _ in range(2):
        image = torch.randn(2, 3, 70, 90, dtype=torch.float64)
        grads = train_step(plain, image), train_step(other, image)
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert all(buffer is buffers[name] for name, buffer in other.named_buffers())


def test_a_recomputation_that_fails_leaves_the_statistics():
    model = RepMLPNet(TINY, 64, with_cp=True).train()
    loss = sum(level.mean() for level in model(torch.randn(2, 3, 64, 64)))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def fail(*_):
        raise RuntimeError('out of memory')

    model.stages[1][0].norm2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        loss.backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(img_size=60), 'multiples of 32'),
        (dict(arch='tiny'), "no arch 'tiny'"),
        (dict(norm_cfg=dict(type='GN', num_groups=1)), 'can be folded'),
        (dict(out_indices=(0, 4)), '-4 to 3'),
        (dict(img_size=None), 'img_size must be multiples of 32, but got None'),
        (dict(in_channels=0), 'in_channels must be a positive int, but got 0'),
        (dict(in_channels='3'), "in_channels must be a positive int, but got '3'"),
        (dict(globalperceptron_ratio=0), 'globalperceptron_ratio must be a positive int'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), 'must be of type BN.*folded'),
        (dict(norm_cfg=dict(type=nn.GroupNorm, num_groups=2)), 'must be of type BN.*folded'),
        (dict(norm_cfg=dict(type='BN', track_running_stats=False)), 'track_running_stats True'),
        (dict(norm_cfg=dict(type='BN', affine=False)), 'leave affine'),
        (dict(arch=dict(TINY, depths=2)), 'arch depths must be 4 positive ints'),
        (dict(arch=dict(TINY, depths=[1, 1])), '4 positive ints, one per stage'),
        (dict(arch=dict(TINY, channels=[8, 16, 32, 0])), 'arch channels must be'),
        (dict(arch=dict(TINY, sharesets_nums=[1, 3, 8, 16])), 'multiples of sharesets_nums'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RepMLPNet(**{'arch': TINY, 'img_size': 64, **kwargs})


@pytest.mark.parametrize('kernels', [(2,), (3, 4), (3, 3), (), 3, (0,), (-1,), ('3',), '3'])
def test_wrong_kernels(kernels):
    with pytest.raises(ValueError, match=r'reparam_conv_kernels must be .* different odd'):
        RepMLPNet(TINY, 64, reparam_conv_kernels=kernels)


@pytest.mark.parametrize('name', ['with_cp', 'out_norms', 'norm_eval', 'deploy'])
def test_only_a_bool_is_true_or_false(name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, but got 'False'"):
        RepMLPNet(TINY, 64, **{name: 'False'})


@pytest.mark.parametrize('kind', [nn.BatchNorm2d, SyncBNOrBN, 'BN2d'])
def test_norms_by_class_are_built_and_folded(kind):
    model = randomise(RepMLPNet(TINY, 64, norm_cfg=dict(type=kind, eps=1e-3)).double())
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before = model(image)
        after = to_deploy(model)(image)
    assert all(worst(a, b) < 1e-12 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize('shape', [(0, 3, 64, 64), (1, 3, 0, 64)])
def test_no_image_at_all(shape):
    with pytest.raises(ValueError, match=r'at least one image, of at least 1x1 px, but got'):
        RepMLPNet(TINY, 64)(torch.randn(shape))


def test_is_in_the_root_registry():
    for name in ('RepMLPNet', 'DenseRepMLPNet'):
        assert type(MODELS.build(dict(type=name, arch=TINY, img_size=64))) is RepMLPNet


def test_arguments_of_mmpretrains_class_name_it():
    for name in ('final_norm', 'patch_size', 'conv_cfg', 'patch_cfg'):
        cfg = {'type': 'DenseRepMLPNet', 'arch': TINY, name: True}
        with pytest.raises(TypeError, match=rf"no argument {name}.*type='mmpretrain\.RepMLPNet'"):
            MODELS.build(cfg)
    theirs = MODELS.build(dict(type='mmpretrain.RepMLPNet', arch='b', final_norm=False))
    assert type(theirs) is mmpretrain_repmlp.RepMLPNet


def test_other_kernels_are_named():
    file = RepMLPNet(TINY, 64, reparam_conv_kernels=(1, 3)).state_dict()
    said = r'holds depths 1-2-1-1, reparam_conv_kernels 1, 3; the model has .*_kernels 3'
    with pytest.raises(CheckpointError, match=said):
        RepMLPNet(TINY, 64).check_fit(file, 'x.pth')


@pytest.mark.parametrize('settings', [dict(affine=False), dict(track_running_stats=False), None])
@pytest.mark.parametrize('name', ['fc3_bn', 'repconv1.bn', 'repconv3.bn'])
def test_a_norm_that_was_changed_is_not_folded(settings, name):
    torch.manual_seed(0)
    model = randomise(RepMLPNet(TINY, 64, reparam_conv_kernels=(1, 3)))
    for block in [m for m in model.modules() if hasattr(m, 'fc3_bn')]:
        parent, _, last = name.rpartition('.')
        features = block.fc3_bn.num_features
        other = nn.Identity() if settings is None else nn.BatchNorm2d(features, **settings)
        setattr(block.get_submodule(parent), last, other)
    model.patch_embed.norm = nn.Identity()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(image)
        assert max(map(worst, to_deploy(model)(image), expected)) < 1e-4
