"""tools/benchmark.py: what it writes, for a backbone and for whole configs."""

import json
import re
import sys

import pytest

import benchmark
from cyclemlp_mm.apis.run_tool import run_tool


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the tool in a folder; returns what it prints and the content of its json."""
    monkeypatch.chdir(tmp_path)

    def measure(*arguments):
        once = ['--repeats', '1', '--threads', '1', '--out', 'out']
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments, *once])
        benchmark.benchmark()
        return capsys.readouterr().out, json.loads((tmp_path / 'out/benchmark.json').read_text())

    return measure


@pytest.mark.slow
def test_a_backbone_in_training(run, tmp_path):
    arguments = ['--arch', 't', 'mpvit_tiny', '--size', '1x64x96', '--mode', 'train']
    forms = ['--forms', 'published', 'reference', '--rivals', 'resnet50']
    printed, found = run(*arguments, *forms)
    assert re.search(r'reference\s+t\s+float32\s+train\s+1x64x96', printed)
    assert found['command'].endswith('--out out') and found['threads'] == 1
    assert {row['arch'] for row in found['rows']} == {'t', 'mpvit_tiny', ''}
    rows = {row['contender']: row for row in found['rows'] if row['arch'] != 'mpvit_tiny'}
    assert set(rows) == {'ours', 'published', 'reference', 'resnet50'}
    assert all(row['median_ms'] > 0 and row['saved_bytes'] > 0 for row in rows.values())
    for name in ('published', 'resnet50'):
        ratio = rows[name]['median_ms'] / rows['ours']['median_ms']
        assert rows[name]['times_ours_t_float32'] == ratio
    assert (tmp_path / 'out/benchmark.csv').is_file() and (tmp_path / 'out/benchmark.png').is_file()


DET, MASKS = 'retinanet_cyclemlp_demo', 'mask_rcnn_cyclemlp_b1_fpn_6e_small'
CLS, SEG = 'cyclemlp_demo', 'fpn_cyclemlp_b1_256x256_600i_small'
SLOW = [(MASKS, 'train'), (SEG, 'infer')]
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize('config, mode', [(DET, 'train'), (CLS, 'infer'), *SLOW])
def test_a_whole_config(config, mode, run):
    pytest.importorskip('mmpretrain')
    _, found = run('--config', config, '--size', '2x64x96', '--mode', mode)
    rows = [(row['contender'], row['arch']) for row in found['rows']]
    assert rows == [('ours', config), ('published', config)]


@pytest.mark.parametrize(
    'line, said',
    {
        '--repeats 0': '--repeats must be at least 1, but got 0',
        '--arch b9': '--arch must be of b1, b2',
        '--config cyclemlp_demo --dtype bfloat16': '--dtype float32 or amp',
        '--config x --rivals swin_t': 'are for backbones, not for --config',
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
        run_tool(benchmark.benchmark)
    assert caught.value.code == 2 and said in capsys.readouterr().err
