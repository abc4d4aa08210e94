import pytest
import torch
from families import REPMLP, build
from mixer_cases import worst
from mmengine.registry import MODELS
from plain_mpvit import randomise_norms
from torch import nn

from cyclemlp_mm.errors import CheckpointError

mmpretrain_repmlp = pytest.importorskip('mmpretrain.models.backbones.repmlp')

from cyclemlp_mm.models import SyncBNOrBN, to_deploy  # noqa: E402
from cyclemlp_mm.models.repmlp import RepMLPNet  # noqa: E402 - needs mmpretrain

SIZES = [64, (64, 128), (128, 96)]


@pytest.mark.slow
def test_levels_at_the_training_size_are_those_of_mmpretrains_blocks():
    theirs = randomise_norms(mmpretrain_repmlp.RepMLPNet('base', out_indices=(3,))).eval()
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


@pytest.mark.parametrize('img_size, norm', zip(SIZES, (nn.BatchNorm2d, SyncBNOrBN, 'BN2d')))
@pytest.mark.parametrize('kernels', [(3,), (1, 3, 5), None])
def test_deploy_is_equal_and_idempotent(img_size, norm, kernels):
    norm_cfg = dict(type=norm, eps=1e-3)
    settings = dict(img_size=img_size, reparam_conv_kernels=kernels, norm_cfg=norm_cfg)
    model = randomise_norms(build('repmlp', **settings).double()).eval()
    image = torch.randn(2, 3, 70, 150, dtype=torch.float64)
    with torch.no_grad():
        before = model(image)
        model.switch_to_deploy()
        after = model(image)
        model.switch_to_deploy()
        again = model(image)
    for a, b, c in zip(before, after, again, strict=True):
        assert worst(b, a) < 1e-12 and torch.equal(b, c)
    assert not any('repconv' in name or 'fc3_bn' in name for name in model.state_dict())
    deployed = build('repmlp', **settings, deploy=True).double().eval()
    deployed.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(deployed(image), after, strict=True))


@pytest.mark.parametrize('img_size', SIZES)
@pytest.mark.parametrize('size', [(1, 1), (64, 64), (75, 101)])
def test_any_size(img_size, size):
    model = build('repmlp', img_size=img_size).eval()
    levels = model(torch.randn(1, 3, *size))
    for level, channels, stride in zip(levels, model.out_channels, model.out_strides):
        assert level.shape == (1, channels, *(-(-side // stride) for side in size))


def test_the_zoos_layout_loads(tmp_path, log_lines):
    theirs = mmpretrain_repmlp.RepMLPNet(REPMLP, 64)
    state = {f'backbone.{name}': tensor for name, tensor in theirs.state_dict().items()}
    state |= {'head.fc.weight': torch.zeros(5, 64), 'head.fc.bias': torch.zeros(5)}
    torch.save({'meta': {}, 'state_dict': state}, tmp_path / 'zoo.pth')
    cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'zoo.pth'))
    model = build('repmlp', init_cfg=cfg)
    model.init_weights()
    own = model.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(own[name], tensor), name
    assert any(f'loaded {len(theirs.state_dict())} of {len(own)}' in line for line in log_lines)
    build('repmlp', out_indices=(0, 1), init_cfg=cfg).init_weights()
    with pytest.raises(CheckpointError, match='another shape'):
        build('repmlp', img_size=128, init_cfg=cfg).init_weights()


def test_norm_cfg_reaches_every_part():
    model = build('repmlp', norm_cfg=dict(type='SyncBNOrBN', eps=1e-3), out_indices=(1, 2))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 2 + 2 + 3 * 6 and all(norm.eps == 1e-3 for norm in norms)


def test_arguments_of_mmpretrains_class_name_it():
    for name in ('final_norm', 'patch_size', 'conv_cfg', 'patch_cfg'):
        cfg = {'type': 'DenseRepMLPNet', 'arch': REPMLP, name: True}
        with pytest.raises(TypeError, match=rf"no argument {name}.*type='mmpretrain\.RepMLPNet'"):
            MODELS.build(cfg)
    theirs = MODELS.build(dict(type='mmpretrain.RepMLPNet', arch='b', final_norm=False))
    assert type(theirs) is mmpretrain_repmlp.RepMLPNet


def test_other_kernels_are_named():
    file = build('repmlp', reparam_conv_kernels=(1, 3)).state_dict()
    said = r'holds depths 1-1-1-1, reparam_conv_kernels 1, 3; the model has .*_kernels 3'
    with pytest.raises(CheckpointError, match=said):
        build('repmlp').check_fit(file, 'x.pth')


@pytest.mark.parametrize('settings', [dict(affine=False), dict(track_running_stats=False), None])
@pytest.mark.parametrize('name', ['fc3_bn', 'repconv1.bn', 'repconv3.bn'])
def test_a_norm_that_was_changed_is_not_folded(settings, name):
    model = randomise_norms(build('repmlp', reparam_conv_kernels=(1, 3)))
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
