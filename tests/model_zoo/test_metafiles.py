"""The metafiles say what the configs are, and the pages say what the metafiles say."""

import json
import re

import pytest
from paths import ROOT

from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import MissingFileError, UserError
from model_zoo import model_zoo
from model_zoo_pages.figure import draw, points, read_latencies
from model_zoo_pages.metafiles import measure, read_collections, write_measured

COLLECTIONS = read_collections(ROOT)
MODELS = {model['Name']: model for collection in COLLECTIONS for model in collection.models}
# What mmengine logs, by the metafiles' names, and what makes percent of it.
LOGGED = {'mIoU': ('mIoU', 1), 'pixel accuracy': ('aAcc', 1)}
LOGGED['Top 1 Accuracy'] = ('accuracy/top1', 1)
for kind, name in (('box', 'bbox'), ('mask', 'segm')):
    for shown, logged in (('', ''), ('50', '_50'), ('75', '_75')):
        LOGGED[f'{kind} AP{shown}'] = (f'coco/{name}_mAP{logged}', 100)


def test_every_config_is_in_one_metafile():
    names = [model['Name'] for collection in COLLECTIONS for model in collection.models]
    assert sorted(names) == sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


@pytest.mark.few(4)
@pytest.mark.parametrize('name', MODELS)
def test_stated_sizes_are_those_of_the_built_model(name):
    model = MODELS[name]
    assert measure(model, ROOT).items() <= model['Metadata'].items(), 'tools/model_zoo.py --measure'


def test_schedule_weights_and_arch_are_the_configs():
    for name, model in MODELS.items():
        stated, cfg = model['Metadata'], load_config(name)
        assert model['Config'] == f'configs/{name}.py'
        assert stated['Batch Size'] == cfg.auto_scale_lr.base_batch_size, name
        unit = 'Epochs' if 'max_epochs' in cfg.train_cfg else 'Iterations'
        assert stated[unit] == cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')), name
        assert stated.get('Arch') in (None, cfg.model.backbone.arch), name
        if 'Weights' in model and cfg.model.backbone.get('init_cfg'):
            assert cfg.model.backbone.init_cfg.checkpoint == model['Weights'], name


def test_our_results_are_those_of_their_logs():
    results = [r for model in MODELS.values() for r in model.get('Results', ()) if 'Log' in r]
    assert len(results) >= 2
    for result in results:
        text = (ROOT / result['Log']).read_text()
        for metric, value in result['Metrics'].items():
            name, scale = LOGGED[metric]
            found = re.findall(rf'(?<!\S){re.escape(name)}: ([\d.]+)', text)
            assert scale * float(found[-1]) == pytest.approx(value), (result['Log'], metric)


def test_quoted_results_are_only_those_with_a_known_source():
    """What is not in this table must not appear as the papers'."""
    results = [result for model in MODELS.values() for result in model.get('Results', ())]
    assert all(('Quoted From' in result) != ('Log' in result) for result in results)
    quoted = {
        (name, metric): value
        for name, model in MODELS.items()
        for result in model.get('Results', ())
        if 'Quoted From' in result and 'cyclemlp' in name
        for metric, value in result['Metrics'].items()
    }
    top1 = dict(b1=78.9, b2=81.6, b3=82.4, b4=83.0, b5=83.2, t=81.3, s=82.9, b=83.4)
    expected = {(f'cyclemlp_{arch}_in1k', 'Top 1 Accuracy'): value for arch, value in top1.items()}
    expected['retinanet_cyclemlp_b1_fpn_1x_coco', 'box AP'] = 38.6
    expected['fpn_cyclemlp_b4_512x512_40k_ade20k', 'mIoU'] = 45.1
    assert quoted == expected


def test_the_generated_pages_are_up_to_date(capsys):
    assert model_zoo(['--check', '--root', str(ROOT)]) is False
    assert 'up to date' in capsys.readouterr().out


def test_model_index_reads_the_whole_of_it():
    """The library behind mim."""
    modelindex = pytest.importorskip('modelindex')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert {model.name for model in index.models} == set(MODELS)
    assert index.check(silent=True) == []


METAFILE = """\
# kept
Collections:
  - Name: Toy
    Paper: {Title: A toy, URL: https://example.org}
    Code: cyclemlp_mm/models/cyclemlp.py
    Metadata: {Backbone: CycleMLP, Shown Settings: [depths]}
Models:
  - Name: toy_in1k
    Config: configs/toy_in1k.py
    In Collection: Toy
    Metadata:
      Arch: b1
      Recipe: ImageNet
      Training Data: ImageNet-1k
      Epochs: 3
      Batch Size: 8
      Parameters: 1
      FLOPs: 2
      FLOPs Size: 64x64
    Results:
      - Dataset: ImageNet-1k
        Metrics: {Top 1 Accuracy: 12.3}
        Quoted From: someone
"""


@pytest.fixture
def project(tmp_path):
    """A checkout with one small family."""
    for folder in ('docs', 'configs'):
        (tmp_path / folder).mkdir()
    for name, text in {
        'configs/metafile.yml': METAFILE,
        'model-index.yml': 'Import: [configs/metafile.yml]\n',
        'configs/toy_in1k.py': f"_base_ = '{ROOT}/configs/cyclemlp_b1_in1k.py'\n",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_measuring_and_writing(project, capsys):
    with pytest.raises(UserError, match=r'docs/model_zoo\.md differs'):
        model_zoo(['--check', '--root', str(project)])
    model_zoo(['--measure', '--root', str(project)])
    assert 'measured  toy_in1k' in capsys.readouterr().out
    [toy] = read_collections(project)
    counted = MODELS['cyclemlp_b1_in1k']['Metadata']['Parameters']
    assert toy.models[0]['Metadata']['Parameters'] == counted
    assert toy.metafile.read_text().startswith('# kept\n')
    page = (project / 'docs' / 'model_zoo.md').read_text()
    assert '| `b1` | 2-2-4-2 | 15.2M | 0.2G |' in page
    assert '| `toy_in1k` | ImageNet | 15.2M | 0.2G at 64×64 | ImageNet-1k: ' in page
    assert 'Top 1 Accuracy 12.3 (quoted)' in page
    assert 'Latency: **not measured**' in page and 'Quoted from: someone.' in page
    assert write_measured(toy, project) == []
    assert model_zoo(['--check', '--root', str(project)]) is False


def test_a_mistake_is_named(project):
    wrong = METAFILE.replace('      Recipe: ImageNet\n', '')
    (project / 'configs' / 'metafile.yml').write_text(wrong)
    with pytest.raises(UserError, match=r'metafile\.yml: toy_in1k misses Recipe'):
        read_collections(project)
    (project / 'docs').rmdir()
    with pytest.raises(MissingFileError, match='works in a checkout'):
        model_zoo(['--root', str(project)])


def row(contender, arch, milliseconds):
    about = dict(contender=contender, arch=arch, size='2x224x224', dtype='float32', mode='infer')
    return dict(about, median_ms=milliseconds)


def test_the_figure(project, tmp_path, capsys):
    """Drawn from the json of tools/benchmark.py, latency per image against quoted accuracy."""
    pytest.importorskip('torchvision')
    rows = [row('ours', 'b1', 20.0), row('ours', 'b2', 40.0), row('published', 'b1', 60.0)]
    rows += [row('resnet50', '', 50.0), row('reference', 'b1', 30.0)]
    content = dict(device='a CPU', threads=2, rows=rows)
    path = tmp_path / 'benchmark.json'
    path.write_text(json.dumps(content))
    series = points(read_latencies(path), COLLECTIONS)
    assert series['CycleMLP'] == [(10.0, 78.9, 'B1'), (20.0, 81.6, 'B2')]
    assert series['CycleMLP, published form'] == [(30.0, 78.9, 'B1')]
    [(time, accuracy, name)] = series['torchvision (its IMAGENET1K_V1)']
    assert (time, name) == (25.0, 'ResNet-50') and 76 < accuracy < 77
    assert len(series) == 3
    assert draw(content, COLLECTIONS, tmp_path / 'figure.png').stat().st_size > 5000
    model_zoo(['--latency', str(path), '--root', str(project)])
    assert 'drawn' in capsys.readouterr().out
    page = (project / 'docs' / 'model_zoo.md').read_text()
    assert 'images/accuracy_latency.png' in page and '**not measured**. The' not in page
    for wrong, message in (
        ([*rows, dict(rows[0], size='1x9x9')], 'one size and dtype'),
        ([{}], 'is not a benchmark.json'),
    ):
        path.write_text(json.dumps(dict(content, rows=wrong)))
        with pytest.raises(UserError, match=message):
            read_latencies(path)
