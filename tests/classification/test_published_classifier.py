"""Published classifier files in mmpretrain's ImageClassifier, with no conversion."""

import pickle

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from parity_rule import golden, published_tensors
from paths import ROOT, needs_parity
from published_names import published_state_dict
from toy_models import ARCH
from toy_runs import NO_WORKERS, run_tool

from cyclemlp_mm.datasets.shapes import write_image_lists
from cyclemlp_mm.engine import load_config

pytest.importorskip('mmpretrain')


def classifier(config, **backbone):
    init_default_scope('mmpretrain')
    cfg = load_config(config)
    cfg.model.backbone.update(backbone)
    return MODELS.build(cfg.model).eval()


@needs_parity
@pytest.mark.parametrize('arch', ['b1', 'b2'])
def test_golden_logits(arch, tmp_path):
    content = published_tensors(f'cyclemlp_{arch}_cls')
    torch.save({'model': content, 'epoch': 3}, tmp_path / 'published.pth')
    model = classifier(f'cyclemlp_{arch}_in1k')
    load_checkpoint(model, str(tmp_path / 'published.pth'), map_location='cpu')
    expected, image = golden(f'cyclemlp_{arch}_cls')
    with torch.no_grad():
        logits = model(torch.from_numpy(image), mode='tensor')
    expected = torch.from_numpy(expected['logits'])
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


TINY = dict(ARCH, widths=(8, 8, 8, 512))


def test_tensors_arrive_and_our_own_files_stay_as_they_are(tmp_path):
    source, target = (classifier('cyclemlp_b1_in1k', arch=TINY) for _ in range(2))
    torch.save(published_state_dict(source.backbone, classifier=1000), tmp_path / 'published.pth')
    load_checkpoint(target, str(tmp_path / 'published.pth'), strict=True)
    for name, tensor in source.backbone.state_dict().items():
        assert torch.equal(target.backbone.state_dict()[name], tensor), name
    torch.save(target.state_dict(), tmp_path / 'own.pth')
    load_checkpoint(source, str(tmp_path / 'own.pth'), strict=True)
    own = target.state_dict()
    assert all(torch.equal(t, own[n]) for n, t in source.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tools_test_takes_a_published_file(tmp_path):
    """EMA hook and all: the predictions are those of the weights in the file."""
    model = classifier('cyclemlp_b1_in1k', arch=TINY)
    published = published_state_dict(model.backbone, classifier=1000)
    torch.save({'model': published}, tmp_path / 'published.pth')
    data = write_image_lists(tmp_path / 'data', 2, 3, (64, 48))
    (data / 'classes.txt').write_text('\n'.join(f'class {i}' for i in range(1000)))
    (tmp_path / 'tiny.py').write_text(
        f'_base_ = {str(ROOT / "configs" / "cyclemlp_b1_in1k.py")!r}\n'
        f'model = dict(backbone=dict(arch=dict(_delete_=True, **{TINY!r})))\n'
    )
    arguments = ['tiny.py', 'published.pth', '--data', data, '--work-dir', 'wd']
    arguments += ['--out', 'found.pkl', '--show-dir', 'drawn', '--cfg-options', *NO_WORKERS]
    _, printed = run_tool('test.py', *arguments, cwd=tmp_path)
    assert 'accuracy/top1:' in printed
    assert len(list((tmp_path / 'drawn').iterdir())) == 3
    with (tmp_path / 'found.pkl').open('rb') as file:
        found = pickle.load(file)
    load_checkpoint(model, str(tmp_path / 'published.pth'))
    from mmengine.dataset import Compose

    pipeline = Compose(load_config('cyclemlp_b1_in1k').test_dataloader.dataset.pipeline)
    for sample in found:
        packed = pipeline(dict(img_path=sample['img_path'], gt_label=0))
        batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
        with torch.no_grad():
            [expected] = model.test_step(batch)
        torch.testing.assert_close(sample['pred_score'], expected.pred_score, rtol=1e-4, atol=1e-6)
