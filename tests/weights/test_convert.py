"""The converter: every source to every format and back, bit by bit; what it refuses."""

import hashlib
import json

import pytest
import torch
from families import CYCLE
from parity_rule import published_keys
from paths import needs_parity
from published_names import published_state_dict
from safetensors.torch import load_file, save_file

from cyclemlp_mm.apis.convert_weights import convert_weights
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights import read_checkpoint
from cyclemlp_mm.weights.convert import convert
from cyclemlp_mm.weights.unwrap import find_state_dict

TINY = {**CYCLE, 'depths': (1, 2, 1, 1)}
SWIN_STYLE = {**TINY, 'reweight': False, 'downsample': 'patch_merging'}


def random_state(arch=TINY, **kwargs):
    return {name: torch.randn_like(t) for name, t in CycleMLP(arch, **kwargs).state_dict().items()}


def classifier():
    ours = {f'backbone.{name}': t for name, t in random_state(out_indices=(3,)).items()}
    return ours | {'head.fc.weight': torch.randn(7, 24), 'head.fc.bias': torch.randn(7)}


def state(path):
    return find_state_dict(read_checkpoint(path), str(path))


def assert_equal(one, other):
    assert set(one) == set(other)
    assert all(torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)


@pytest.mark.parametrize(
    'arch, kwargs',
    [
        (SWIN_STYLE, dict(out_indices=(0, 1, 2, 3))),
        (SWIN_STYLE, dict(out_indices=(1,))),
        *((TINY, dict(out_indices=levels)) for levels in [(1, 2, 3), (3,), (0, 1, 2), (0,)]),
        *((TINY, dict(in_channels=channels)) for channels in (1, 3, 4)),
    ],
)
def test_a_backbone_goes_to_published_and_back_bit_for_bit(tmp_path, arch, kwargs):
    ours = random_state(arch, **kwargs)
    torch.save(ours, tmp_path / 'ours.pth')
    done = convert(tmp_path / 'ours.pth', tmp_path / 'published.pth', 'published')
    assert (done.source, done.backbone, done.classifier) == ('ours', len(ours), 0)
    assert convert(tmp_path / 'published.pth', tmp_path / 'back.pth').source == 'published'
    assert_equal(state(tmp_path / 'back.pth'), ours)
    convert(tmp_path / 'back.pth', tmp_path / 'again.pth', 'published')
    assert (tmp_path / 'again.pth').read_bytes() == (tmp_path / 'published.pth').read_bytes()


_CUSTOM = 'reweight True, downsample conv)'


@pytest.mark.parametrize(
    'arch, out_indices, name',
    [
        ('b1', (0, 1, 2), 'b1'),
        ('b1', (0,), 'b1 or b2'),
        ('t', (0, 1), 't or s'),
        (TINY, (0, 1), f'custom (depths 1-2, widths 8-16, mlp_ratios 2-2, {_CUSTOM}'),
        (TINY, (0,), 'custom (depths 1, widths 8, mlp_ratios 2, reweight True)'),
    ],
)
def test_the_stages_there_are_name_the_arch(tmp_path, arch, out_indices, name):
    torch.save(random_state(arch, out_indices=out_indices), tmp_path / 'ours.pth')
    assert convert(tmp_path / 'ours.pth', tmp_path / 'new.pth').arch == name


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_classifier_goes_to_published_and_back(tmp_path, suffix):
    ours = classifier()
    torch.save({'state_dict': ours, 'meta': {'epoch': 3}}, tmp_path / 'ours.pth')
    published = tmp_path / f'published.{suffix}'
    convert(tmp_path / 'ours.pth', published, 'published')
    names = set(state(published))
    assert {'norm.weight', 'head.weight', 'network.0.0.attn.sfc_h.offset'} <= names
    convert(published, tmp_path / 'back.safetensors')
    assert_equal(state(tmp_path / 'back.safetensors'), ours)


@needs_parity
@pytest.mark.parametrize('name', ['b1_cls', 'b1_dense', 'b2_cls', 'b2_dense'])
def test_published_names_and_shapes_are_exactly_those_of_the_authors_files(tmp_path, name):
    arch, use = name.split('_')
    ours = CycleMLP(arch, out_indices=(0, 1, 2, 3) if use == 'dense' else (3,)).state_dict()
    if use == 'cls':
        ours |= {'head.weight': torch.randn(1000, 512), 'head.bias': torch.zeros(1000)}
    torch.save(ours, tmp_path / 'ours.pth')
    assert convert(tmp_path / 'ours.pth', tmp_path / 'new.pth', 'published').arch == arch
    shapes = {n: tuple(t.shape) for n, t in state(tmp_path / 'new.pth').items()}
    assert shapes == published_keys(f'cyclemlp_{name}')
    assert next(iter(shapes)) == 'patch_embed.proj.weight'


def test_a_detector_keeps_its_heads_and_class_names_and_loses_its_optimiser(tmp_path):
    whole = {f'backbone.{n}': t for n, t in random_state(out_indices=(1, 2, 3)).items()}
    whole |= {'neck.convs.0.weight': torch.randn(3), 'bbox_head.cls.bias': torch.randn(2)}
    meta = {'epoch': 3, 'dataset_meta': {'classes': ('cat', 'dog'), 'palette': [(1, 2, 3)] * 2}}
    torch.save({'state_dict': whole, 'meta': meta, 'optimizer': {}}, tmp_path / 'run.pth')
    for suffix, classes in (('pth', ('cat', 'dog')), ('safetensors', ['cat', 'dog'])):
        done = convert(tmp_path / 'run.pth', tmp_path / f'small.{suffix}')
        assert (done.rest, done.dropped) == (2, 0)
        content = read_checkpoint(tmp_path / f'small.{suffix}')
        assert_equal(content['state_dict'], whole)
        assert 'optimizer' not in content
        assert content['meta']['dataset_meta']['classes'] == classes
    done = convert(tmp_path / 'run.pth', tmp_path / 'published.pth', 'published')
    assert (done.rest, done.dropped) == (0, 2)


def test_safetensors_are_what_the_library_and_the_format_say(tmp_path):
    whole = {f'backbone.{n}': t for n, t in random_state().items()}
    whole['backbone.stem.proj.weight'] = whole['backbone.stem.proj.weight'].half()
    whole['neck.a'] = whole['neck.b'] = torch.ones(3)
    meta = {'dataset_meta': {'classes': ('a', 'b')}}
    torch.save({'state_dict': whole, 'meta': meta}, tmp_path / 'ours.pth')
    done = convert(tmp_path / 'ours.pth', tmp_path / 'ours.safetensors')
    assert convert(tmp_path / 'ours.pth', tmp_path / 'again.safetensors').sha256 == done.sha256
    assert_equal(load_file(tmp_path / 'ours.safetensors'), whole)
    save_file({n: t.clone() for n, t in whole.items()}, tmp_path / 'theirs.safetensors')
    assert_equal(read_checkpoint(tmp_path / 'theirs.safetensors'), whole)
    data = (tmp_path / 'ours.safetensors').read_bytes()
    size = int.from_bytes(data[:8], 'little')
    assert json.loads(data[8 : 8 + size])['__metadata__']['format'] == 'pt' and size % 8 == 0


def test_the_command_prints_counts_and_hash_and_does_not_overwrite(tmp_path, capsys):
    source, target = str(tmp_path / 'b1.pth'), tmp_path / 'new.safetensors'
    torch.save(published_state_dict(CycleMLP('b1'), classifier=1000), source)
    convert_weights([source, str(target)])
    printed = capsys.readouterr().out
    assert 'published weights, CycleMLP b1' in printed and '2 of the classifier' in printed
    content = target.read_bytes()
    assert hashlib.sha256(content).hexdigest() in printed
    with pytest.raises(UserError, match=r'new\.safetensors is there already.*--force'):
        convert_weights([source, str(target)])
    assert target.read_bytes() == content
    convert_weights([source, str(target), '--force'])


def test_nothing_is_left_where_it_fails(tmp_path, monkeypatch):
    torch.save(random_state(), tmp_path / 'ours.pth')
    (tmp_path / 'new.pth').write_text('precious')
    for patched, error in (
        ('os.replace', OSError),
        ('cyclemlp_mm.weights.convert._same', ValueError),
    ):

        def fail(*args, error=error):
            raise error('no space left on device')

        with monkeypatch.context() as patch:
            patch.setattr(patched, fail)
            with pytest.raises(error, match='no space'):
                convert(tmp_path / 'ours.pth', tmp_path / 'new.pth', force=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ['new.pth', 'ours.pth']
        assert (tmp_path / 'new.pth').read_text() == 'precious'


def test_what_it_refuses(tmp_path):
    ours, cls = random_state(), classifier()
    source = tmp_path / 'x.pth'
    for content, message in (
        ({'conv1.weight': torch.ones(3)}, 'no complete CycleMLP.*conv1'),
        ({n: t for n, t in ours.items() if 'stages.2' not in n}, 'no complete CycleMLP'),
        ({n: t for n, t in ours.items() if 'stages.3' not in n}, 'are unknown.*norm3|norms'),
        ({n: t for n, t in ours.items() if 'stem' not in n}, '2 of .* are missing'),
        ({**ours, 'stem.proj.weight': torch.ones(8)}, '1 have another shape'),
        ({**ours, 'stem.proj.weight': torch.ones(8, 0, 7, 7)}, 'in_channels must be'),
        ({**ours, 'stem.extra': torch.ones(1)}, '1 are unknown.*extra'),
        ({**ours, 'stages.1.5.norm1.weight': torch.ones(16)}, 'no complete|does not fit'),
        ({**ours, 'stages.4.0.norm1.weight': torch.ones(16)}, 'does not fit'),
        ({**ours, 'norm9.weight': torch.ones(1)}, 'norms'),
        ({**ours, 'stem.proj.bias': torch.ones(9)}, '1 have another shape'),
        ({**ours, 'stem.proj.bias': torch.ones(8).int()}, '1 have another shape or type'),
        ({**cls, 'head.fc.weight': torch.ones(7, 25)}, 'classifier'),
        ({n: t for n, t in cls.items() if n != 'head.fc.bias'}, 'classifier'),
    ):
        torch.save(content, source)
        with pytest.raises(CheckpointError, match=rf'x\.pth.*{message}'):
            convert(source, tmp_path / 'new.pth')
    assert not (tmp_path / 'new.pth').exists()
    torch.save(ours, source)
    for target, to, message in (
        ('new.pdparams', None, 'only read'),
        ('', None, 'is a folder'),
        ('no/where/new.pth', None, 'make it first'),
        ('new.pth', 'onnx', 'one of ours, published, safetensors'),
    ):
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / target, to)
    with pytest.raises(UserError, match='does not exist'):
        convert_weights([str(tmp_path / 'gone.pth'), str(tmp_path / 'new.pth')])
