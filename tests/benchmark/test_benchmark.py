"""tools/benchmark.py: what it writes, for a backbone and for whole configs."""

import json
import re
import sys

import pytest
from toy_runs import run_tool

import benchmark
from cyclemlp_mm.apis.run_tool import run_tool as in_process

ONCE = ['--repeats', '1', '--threads', '1', '--out', 'out']


def test_a_backbone_in_training(tmp_path):
    arguments = ['--arch', 't', '--size', '1x64x96', '--mode', 'train']
    forms = ['--forms', 'published', 'reference', '--rivals', 'resnet50']
    _, printed = run_tool('benchmark.py', *arguments, *forms, *ONCE, cwd=tmp_path)
    assert re.search(r'reference\s+t\s+float32\s+train\s+1x64x96', printed)
    found = json.loads((tmp_path / 'out/benchmark.json').read_text())
    assert found['command'].endswith('--out out') and found['threads'] == 1
    rows = {row['contender']: row for row in found['rows']}
    assert set(rows) == {'ours', 'published', 'reference', 'resnet50'}
    assert all(row['median_ms'] > 0 and row['saved_bytes'] > 0 for row in rows.values())
    for name in ('published', 'resnet50'):
        ratio = rows[name]['median_ms'] / rows['ours']['median_ms']
        assert rows[name]['times_ours_t_float32'] == ratio
    assert (tmp_path / 'out/benchmark.csv').is_file() and (tmp_path / 'out/benchmark.png').is_file()


def test_mpvit_and_deploy(tmp_path):
    arguments = ['--arch', 'mpvit_tiny', 't', '--size', '1x64x64', '--deploy', '--forms']
    _, printed = run_tool('benchmark.py', *arguments, *ONCE, cwd=tmp_path)
    assert re.search(r'ours\s+mpvit_tiny', printed) and (tmp_path / 'out/benchmark.json').is_file()


DET, MASKS = 'retinanet_cyclemlp_demo', 'mask_rcnn_cyclemlp_b1_fpn_6e_small'
CLS, SEG = 'cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small'
SLOW = [(DET, 'infer'), (MASKS, 'train'), (CLS, 'train'), (SEG, 'train'), (SEG, 'infer')]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize('config, mode', [(DET, 'train'), (CLS, 'infer'), *SLOW])
def test_a_whole_config(config, mode, tmp_path):
    pytest.importorskip('mmpretrain')
    arguments = ['--config', config, '--size', '2x64x96', '--mode', mode, *ONCE]
    run_tool('benchmark.py', *arguments, cwd=tmp_path)
    rows = json.loads((tmp_path / 'out/benchmark.json').read_text())['rows']
    found = [(row['contender'], row['arch']) for row in rows]
    assert found == [('ours', config), ('published', config)]


@pytest.mark.parametrize(
    'line, said',
    {
        '--repeats 0': '--repeats must be at least 1, but got 0',
        '--deploy --mode train': '--deploy is for --mode infer',
        '--arch b9': '--arch must be of b1, b2',
        '--size 1x16x16': "--size: must be at least 1x32x32: '1x16x16'",
        '--device foo': "invalid device 'foo'",
        '--config cyclemlp_demo --dtype bfloat16': '--dtype float32 or amp',
        '--config x --rivals swin_t': 'are for backbones, not for --config',
        '--config nope': 'config nope is neither a file nor',
        '--out file/out': 'cannot be written (Not a directory)',
    }.items(),
)
def test_mistakes_are_reported_before_anything_is_measured(
    line, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('benchmarking.measure.matmul_rate', None)  # calling it would fail
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *line.split()])
    with pytest.raises(SystemExit) as caught:
        in_process(benchmark.benchmark)
    assert caught.value.code == 2 and said in capsys.readouterr().err
