"""tools/export.py: one file per model, right at every size, or no file."""

import errno
import re

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from published_names import published_state_dict
from torch import nn
from toy_models import ARCH

import cyclemlp_mm.export.write as write_module
from cyclemlp_mm.apis.export import export
from cyclemlp_mm.engine import find_config, load_config, require_toolbox
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.export import ExportedPart, export_model
from cyclemlp_mm.export.check import largest_difference, runner

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

RETINANET = 'retinanet_cyclemlp_b1_fpn_1x_coco'
# Three sizes, odd ones among them, and two batches; the file is exported once.
SHAPES = [(b, h, w) for b in (1, 2) for h, w in ((224, 224), (160, 256), (331, 197))]
CLASSIFIER = dict(ARCH, widths=(8, 8, 8, 512))


def build(name, **arch):
    cfg = load_config(name)
    pytest.importorskip(cfg.default_scope)
    init_default_scope(require_toolbox(cfg))
    cfg.model.backbone.init_cfg = None
    if arch:
        cfg.model.backbone.arch = arch
    model = MODELS.build(cfg.model).eval()
    for module in model.modules():  # statistics that a missing norm would show in
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
    return model


def operators(path):
    model = onnx.load(str(path))
    assert not model.functions
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 20)]
    return {(node.domain, node.op_type) for node in model.graph.node}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('part', ['backbone', 'model'])
def test_b1_once_for_all_sizes(part, tmp_path):
    """Contract: backbone B1 and Semantic FPN-B1, 3 sizes, 2 batches, 1e-4, standard ops."""
    model = build('fpn_cyclemlp_b1_512x512_40k_ade20k')
    path = tmp_path / 'b1.onnx'
    report = export_model(model, path, part, metadata=dict(mean='[1, 2, 3]'))
    assert list(report.outputs) == (['logits'] if part == 'model' else LEVELS[:4])
    used = operators(path)
    assert {domain for domain, _ in used} == {''}
    assert not any('Deform' in op or op in ('GridSample', 'ScatterND') for _, op in used)
    module = ExportedPart(model, part)
    assert largest_difference(module, runner(path), SHAPES) <= 1e-4
    [image] = onnx.load(str(path)).graph.input
    sizes = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert sizes == ['batch', 3, 'height', 'width']
    assert {p.key: p.value for p in onnx.load(str(path)).metadata_props}['mean'] == '[1, 2, 3]'


SUMMED = dict(ARCH, widths=(96, 192, 384, 768), reweight=False, downsample='patch_merging')
LEVELS = [f'level{i}' for i in range(5)]
# Name, arch, outputs.
CASES = {
    'upernet': ('upernet_cyclemlp_t_512x512_160k_ade20k', SUMMED, ['logits']),
    'retinanet': (RETINANET, dict(ARCH, widths=(64, 128, 320, 512)), LEVELS),
    'classifier': ('cyclemlp_b1_in1k', CLASSIFIER, ['logits']),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('suffix', ['.onnx', '.pt2'])
@pytest.mark.parametrize('case', CASES)
def test_other_models(case, suffix, tmp_path):
    name, arch, outputs = CASES[case]
    model = build(name, **arch)
    path = tmp_path / f'model{suffix}'
    assert list(export_model(model, path).outputs) == outputs
    assert largest_difference(ExportedPart(model), runner(path), SHAPES[:4]) <= 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no draft stays


@pytest.mark.slow
@pytest.mark.parametrize('part', ['model', pytest.param('backbone', marks=pytest.mark.slow)])
def test_a_published_file_through_the_tool(part, tmp_path, capsys):
    model = build('cyclemlp_b1_in1k', **CLASSIFIER)
    torch.save(published_state_dict(model.backbone, classifier=1000), tmp_path / 'published.pth')
    (tmp_path / 'tiny.py').write_text(
        f'_base_ = {str(find_config("cyclemlp_b1_in1k"))!r}\n'
        f'model = dict(backbone=dict(arch=dict(_delete_=True, **{CLASSIFIER!r})))\n'
    )
    arguments = [str(tmp_path / 'tiny.py'), str(tmp_path / 'published.pth')]
    path = tmp_path / f'{part}.pt2'
    export([*arguments, str(path), '--part', part, '--time', '64', '96'])
    printed = capsys.readouterr().out
    assert f'{part}.pt2 ' in printed
    assert re.search(rf'{part} at 1x3x64x96, .* PyTorch \S+ ms, exported \S+ ms', printed)
    module = ExportedPart(model, part)
    if part == 'model':
        load_checkpoint(model, str(tmp_path / 'published.pth'), strict=True)
    assert largest_difference(module, runner(path), SHAPES[:1]) <= 1e-4
    with pytest.raises(UserError, match=r'--time 20 64: --part model .* at least 36 px'):
        export([*arguments, str(tmp_path / 'none.pt2'), '--time', '20', '64'])
    with pytest.raises(UserError, match='is there already: choose another name, or --force'):
        export([*arguments, str(path)])
    torch.save({'stem.proj.bias': torch.zeros(8)}, tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match='does not fit the model'):
        export([arguments[0], str(tmp_path / 'half.pth'), str(tmp_path / 'none.pt2')])
    assert not (tmp_path / 'none.pt2').exists()


@pytest.mark.slow
def test_a_wrong_graph_is_not_written(tmp_path, monkeypatch):
    model = build('cyclemlp_b1_in1k', **CLASSIFIER)
    plain = write_module.plain_form

    def spoiled(module, constant_weights):
        module = plain(module, constant_weights)
        norm = module.model.backbone.norm3
        norm.weight = nn.Parameter(1.01 * norm.weight.detach())  # the original keeps its own
        return module

    monkeypatch.setattr(write_module, 'plain_form', spoiled)
    (tmp_path / 'old.pt2').write_text('old')
    with pytest.raises(UserError, match=r'differs from PyTorch: output 0 .* nothing was written'):
        export_model(model, tmp_path / 'old.pt2', force=True)
    assert (tmp_path / 'old.pt2').read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['old.pt2']


def test_mistakes_are_said(tmp_path):
    model = build(RETINANET)
    for name, options, said in (
        ('model.pb', {}, r'must end in \.onnx or \.pt2'),
        ('model.pt2', dict(part='model'), r'of a detector: no \.pt2 .* \.onnx and .* --part neck'),
        ('model.onnx', dict(part='model', opset=15), 'no .onnx of opset 15. Take .* 16 on'),
        ('model.onnx', dict(part='head'), '--part must be one of'),
        ('model.onnx', dict(opset=21), r'opset must be 11 to 20.* 21'),
    ):
        with pytest.raises(UserError, match=said):
            export_model(model, tmp_path / name, **options)
    with pytest.raises(UserError, match=r'of torch\.float16 is not exported: .*model\.float\(\)'):
        export_model(model.half(), tmp_path / 'model.onnx')


@pytest.mark.slow
def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    model = build('cyclemlp_b1_in1k', **CLASSIFIER)
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'DST .*cannot be written \(Not a directory\)'):
        export_model(model, tmp_path / 'file' / 'model.pt2')

    class FullDisk(type(tmp_path)):
        """Nor can what was begun be taken away: that must not hide the first error."""

        def with_name(self, name):
            return FullDisk(super().with_name(name))

        def write_bytes(self, content):
            raise OSError(errno.ENOSPC, 'No space left on device')

        def unlink(self, missing_ok=False):
            raise OSError(errno.EROFS, 'Read-only file system', str(self))

    monkeypatch.setattr(write_module, 'Path', FullDisk)
    with pytest.raises(UserError, match=r'model\.pt2 cannot be written \(No space left'):
        export_model(model, tmp_path / 'model.pt2')
    assert not (tmp_path / 'model.pt2').exists()
