"""--data: COCO files under any names, and folders in other layouts."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from paths import ROOT
from pycocotools.coco import COCO as COCOApi

from cyclemlp_mm.datasets.shapes import CLASSES, write_shapes
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.engine.layouts import COCO, LAYOUTS, recognise
from cyclemlp_mm.errors import UserError

CONFIGS = {
    'mmdet': 'retinanet_cyclemlp_demo',
    'mmseg': 'fpn_cyclemlp_b1_512x512_40k_ade20k',
    'mmpretrain': 'cyclemlp_b1_in1k',
}
PLACES = {s: (f'annotations/instances_{s}.json', f'images/{s}') for s in COCO}
EXAMPLE = '/data/my_cells'  # the folder of docs/own_data.md


@pytest.fixture
def coco(tmp_path):
    return write_shapes('coco', tmp_path / 'coco', 4, 2, (64, 64))


def use(folder, scope='mmdet'):
    return use_own_data(load_config(CONFIGS[scope]), folder)


def move(root, names):
    """Move COCO 2017's files and folders, in the order of ``COCO``; '' makes no folder."""
    for split, new in names.items():
        for old, name in zip(COCO[split][::-1], new[::-1]):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if (root / name).is_dir():  # images beside others
                for image in (root / old).iterdir():
                    image.rename(root / name / image.name)
            else:
                (root / old).rename(root / name)


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def distinct_names(root, places):
    """Images have the same names in both splits; VOC and CVAT put them into one folder."""
    for split, (annotations, folder) in places.items():
        file = root / annotations
        images = json.loads(file.read_text())['images']
        change(file, images=[dict(i, file_name=f'{split}_{i["file_name"]}') for i in images])
        for image in list((root / folder).iterdir()):
            image.rename(image.with_name(f'{split}_{image.name}'))


def objects(cfg):
    """By split: name, size of box and class of each object, and the images, as mmdet reads them."""
    init_default_scope('mmdet')
    found = {}
    for split in ('train', 'val'):
        settings = dict(cfg[f'{split}_dataloader'].dataset, pipeline=[], filter_cfg=None)
        dataset = DATASETS.build(settings)
        classes = dataset.metainfo['classes']
        found[split] = {
            Path(info['img_path']).name: sorted(
                (classes[one['bbox_label']], *one['bbox']) for one in info['instances']
            )
            for info in dataset.load_data_list()
        }
        assert found[split] and all(Path(i['img_path']).is_file() for i in dataset.load_data_list())
    return found


@pytest.mark.few(2)
@pytest.mark.parametrize(
    'names',
    [
        {'train': ('train/_annotations.coco.json', 'train'), 'val': ('valid/a.json', 'valid')},
        {'train': ('train/a.json', 'train/images'), 'val': ('test/a.json', 'test/images')},
        {
            'train': ('annotations/train.json', 'images/train'),
            'val': ('annotations/val.json', 'images/val'),
        },
        {'train': ('my_train.json', 'Training'), 'val': ('my_val_2.json', 'Validation')},
        {'train': ('training_set.json', 'pictures/a'), 'val': ('val.json', 'val2017')},
    ],
)
def test_any_names_of_splits(coco, names):
    expected = objects(use(coco))
    distinct_names(coco, COCO)
    move(coco, names)
    (coco / 'notes.json').write_text('{"made by": "me"}')
    cfg = use(coco)
    found = objects(cfg)
    for split in names:
        here = {f'{split}_{name}': boxes for name, boxes in expected[split].items()}
        assert found[split] == here
        assert cfg[f'{split}_dataloader'].dataset.ann_file == names[split][0]
    for phase in ('val', 'test'):
        assert cfg[f'{phase}_evaluator'].ann_file == str(coco / names['val'][0])


def as_roboflow_exports(coco, used=()):
    """Ids from 0, and a category 0 that groups the others."""
    move(coco, {s: (f'{d}/_annotations.coco.json', d) for s, d in zip(COCO, ('train', 'valid'))})
    for split in ('train', 'valid'):
        file = coco / split / '_annotations.coco.json'
        content = json.loads(file.read_text())
        below = [dict(one, supercategory='shapes') for one in content['categories']]
        group = dict(id=0, name='shapes', supercategory='none')
        for ann in content['annotations'] if split in used else ():
            ann['category_id'] = 0
        change(file, categories=[group, *below], annotations=content['annotations'])


def test_roboflows_group_of_categories_is_no_class(coco, monkeypatch):
    logged = []
    monkeypatch.setattr(
        'cyclemlp_mm.engine.own_data.print_log', lambda line, _: logged.append(line)
    )
    expected = objects(use(coco))
    as_roboflow_exports(coco)
    cfg = use(coco)
    assert cfg.train_dataloader.dataset.metainfo.classes == CLASSES
    assert cfg.model.bbox_head.num_classes == len(CLASSES)
    assert objects(cfg) == expected
    assert "['shapes'] have no objects and only group other categories" in logged[0]


def test_a_group_with_objects_is_a_class(coco):
    as_roboflow_exports(coco, used=['valid'])
    assert use(coco).train_dataloader.dataset.metainfo.classes == ('shapes', *CLASSES)


def test_what_is_ambiguous_is_listed(coco):
    def refuse(message):
        with pytest.raises(UserError, match=message):
            use(coco)

    names = {s: (f'{s}/a.json', f'{s}/images') for s in COCO}
    move(coco, names)
    (coco / 'train/b.json').write_text((coco / 'train/a.json').read_text())
    refuse(r'several COCO files for train: train/a\.json, train/b\.json\. Name one file per split')
    (coco / 'train/b.json').unlink()
    (coco / 'more/train').mkdir(parents=True)
    for image in (coco / 'train/images').iterdir():
        (coco / 'more/train' / image.name).write_bytes(image.read_bytes())
    refuse('several folders: .*more/train.*train/images.* with the images of train/a.json')
    images = json.loads((coco / 'train/a.json').read_text())['images']
    change(coco / 'train/a.json', images=[dict(id=1, file_name='x.jpg', width=9, height=9)])
    refuse(r'no folder with the images of train/a\.json \(x\.jpg, …\): put them into the folder')
    change(coco / 'train/a.json', images=images)
    (coco / 'train').rename(coco / 'part_1')
    refuse(r'lacks annotations/instances_train2017\.json')
    (coco / 'val').rename(coco / 'part_2')
    refuse(r'name neither train nor val: part_1/a\.json, part_2/a\.json\. Name one file per split')
    (coco / 'part_2/a.json').write_text('{"images": [')
    refuse('a.json is no JSON')


@pytest.mark.parametrize('scope', CONFIGS)
@pytest.mark.parametrize('layout', ['coco', 'ade20k', 'folders', 'lists'])
def test_data_of_another_task(tmp_path, layout, scope):
    folder = write_shapes(layout, tmp_path / 'data', 6, 3, (64, 64))
    task = {'coco': 'mmdet', 'ade20k': 'mmseg'}.get(layout, 'mmpretrain')
    if task == scope:
        use(folder, scope)
        return
    with pytest.raises(UserError, match=r'is in the layout of .* but the config is for') as error:
        use(folder, scope)
    words = re.findall(r'\w+', str(error.value).split('take a config such as')[1])
    named = [load_config(word) for word in words if 'cyclemlp' in word]
    assert named and all(cfg.default_scope == task for cfg in named)


@pytest.mark.parametrize('with_void', [True, False])
def test_camvids_layout(tmp_path, with_void):
    folder = write_shapes('ade20k', tmp_path / 'data', 3, 2, (64, 64))
    for part, split in (('training', 'train'), ('validation', 'val')):
        (folder / 'images' / part).rename(folder / split)
        (folder / 'annotations' / part).rename(folder / f'{split}annot')
    names = [*(folder / 'classes.txt').read_text().split(), *['ignored'] * with_void]
    touch(folder, {'label_colors.txt': ''.join(f'{i} 0 9 {n}\n' for i, n in enumerate(names))})
    (folder / 'classes.txt').unlink()
    cfg = use(folder, 'mmseg')
    dataset, classes = cfg.train_dataloader.dataset, tuple(names[: len(names) - with_void])
    assert (dataset.metainfo.classes, dataset.reduce_zero_label) == (classes, False)
    assert dataset.data_prefix == dict(img_path='train', seg_map_path='trainannot')
    [check] = [step for step in dataset.pipeline if step.type == 'CheckLabels']
    assert check.ignore_label == (len(classes) if with_void else 255)


def test_poses_are_not_taken_for_polygons(tmp_path):
    files = dict(MARKS['YOLO (Ultralytics)'], **{'data.yaml': 'names: [a]\nkpt_shape: [17, 3]'})
    with pytest.raises(UserError, match='is not in the layout of COCO'):
        use(touch(tmp_path / 'data', files))


def touch(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


#: What each layout is recognised by.
MARKS = {
    'YOLO (Ultralytics)': {
        'data.yaml': 'names: [a]',
        **{f'images/{s}/1.jpg': '' for s in COCO},
        **{f'labels/{s}/1.txt': '' for s in COCO},
    },
    'YOLO (Darknet)': {'obj.data': ''},
    'Pascal VOC': {
        'JPEGImages/1.jpg': '',
        'Annotations/1.xml': '<annotation>',
        **{f'ImageSets/Main/{s}.txt': '1' for s in COCO},
    },
    'Pascal VOC (masks)': {'JPEGImages/1.jpg': '', 'SegmentationClass/1.png': ''},
    'LabelMe': {'1.jpg': '', '1.json': '{"shapes": []}'},
    'CVAT': {'annotations.xml': '<annotations>', 'images/1.jpg': ''},
}


@pytest.mark.parametrize('name', MARKS)
def test_the_page_has_the_command_of_each_layout(tmp_path, name):
    folder = touch(tmp_path / 'my cells', MARKS[name])
    own, other = ('mmdet', 'mmseg') if name != 'Pascal VOC (masks)' else ('mmseg', 'mmdet')
    found, task, command, result = recognise(folder, own)
    assert (found, task) == (name, own)
    page = (ROOT / 'docs' / 'own_data.md').read_text()
    assert f'| {name} |' in page and command.replace(str(folder), EXAMPLE) in page
    with pytest.raises(UserError) as error:
        use(folder, own)
    assert command in str(error.value) and shlex.split(str(error.value))[-1] == str(result)
    with pytest.raises(UserError, match=r'but the config is for .*: take a config') as error:
        use(folder, other)
    assert command in str(error.value)


def test_every_layout_is_tried():
    assert set(MARKS) == set(LAYOUTS) - {'COCO', 'ADE20K or CamVid', 'class folders'}


def run(command, path=None):
    env = dict(os.environ, PYTHONPATH='', PATH=f'{path}{os.pathsep}{os.environ["PATH"]}')
    done = subprocess.run(command, env=env, shell=isinstance(command, str), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-4000:]


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
    """The programs of an environment with the libraries that write exports, and no other one."""
    folder = tmp_path_factory.mktemp('scratch')
    run([sys.executable, '-m', 'venv', str(folder)])
    pip = [folder / 'bin' / 'python', '-m', 'pip', 'install', '-q']
    done = subprocess.run([*pip, 'supervision', 'datumaro', 'globox'], capture_output=True)
    if done.returncode:
        pytest.skip(f'pip cannot install the libraries that write exports: {done.stderr[-300:]}')
    return folder / 'bin'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Shapes as datumaro, supervision and globox read COCO: boxes only, one image without any."""
    root = write_shapes('coco', tmp_path_factory.mktemp('source') / 'coco', 100, 40, (128, 128))
    move(root, PLACES)
    for split in COCO:
        file = root / PLACES[split][0]
        content = json.loads(file.read_text())
        anns = [ann for ann in content['annotations'] if ann['image_id'] > 1]
        for ann in anns:
            ann.update(segmentation=[], area=ann['bbox'][2] * ann['bbox'][3])
        change(file, annotations=anns)
    distinct_names(root, PLACES)
    return root


HEAD = 'import sys\nsource, out, kind, *folders = sys.argv[1:]'
WRITERS = {
    'datumaro': """
import datumaro as dm
dm.Dataset.import_from(source, 'coco_instances').export(out, kind, save_media=True)
""",
    'supervision': """
import supervision as sv
for s in ('train', 'val'):
    data = sv.DetectionDataset.from_coco(
        f'{source}/images/{s}', f'{source}/annotations/instances_{s}.json')
    paths = [f'{out}/{name.format(s)}' for name in folders]
    yaml = [f'{out}/data.yaml'] if kind == 'yolo' else []
    getattr(data, f'as_{kind}')(*paths, *yaml)
""",
    'globox': """
import shutil, globox
for s in ('train', 'val'):
    shutil.copytree(f'{source}/images/{s}', f'{out}/{s}')
    data = globox.AnnotationSet.from_coco(f'{source}/annotations/instances_{s}.json')
    data.save_labelme(f'{out}/{s}')
""",
}


def split_by_lists(out):
    """VOC's way: the lists are plain text."""
    for split in COCO:
        names = [p.stem for p in (out / 'JPEGImages').iterdir() if p.name.startswith(split)]
        touch(out / 'ImageSets/Main', {f'{split}.txt': '\n'.join(names)})


def without_empty_labels(out):
    for file in out.glob('labels/*/*.txt'):
        file.read_text() or file.unlink()


def without_splits(out):
    for file in out.rglob('val_*'):
        file.unlink()
    if (out / 'val.xml').exists():
        (out / 'val.xml').unlink()
        (out / 'train.xml').rename(out / 'annotations.xml')
    else:
        (out / 'train').rename(out / 'all')


#: Layout; the library that writes it, and its arguments; what is changed after it.
EXPORTS = {
    'ultralytics': ('YOLO (Ultralytics)', 'datumaro', ['yolo_ultralytics'], without_empty_labels),
    'roboflow': ('YOLO (Ultralytics)', 'supervision', ['yolo', '{}/images', '{}/labels'], None),
    'darknet': ('YOLO (Darknet)', 'datumaro', ['yolo'], None),
    'voc lists': (
        'Pascal VOC',
        'supervision',
        ['pascal_voc', 'JPEGImages', 'Annotations'],
        split_by_lists,
    ),
    'voc folders': ('Pascal VOC', 'supervision', ['pascal_voc', '{}', '{}'], None),
    'labelme unsplit': ('LabelMe', 'globox', ['labelme'], without_splits),
    'cvat unsplit': ('CVAT', 'datumaro', ['cvat'], without_splits),
}


def convert(folder, scratch, scope='mmdet'):
    """Run the command of the message; returns the folder that it names for --data."""
    with pytest.raises(UserError, match='This command converts it') as error:
        use(folder, scope)
    _, command, result = str(error.value).split('\n\n')
    run(command, path=scratch)
    [folder] = shlex.split(result.split('--data ')[1])  # as a reader pastes it
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('kind', EXPORTS)
def test_the_command_makes_the_same_boxes(kind, source, scratch, tmp_path):
    name, library, arguments, after = EXPORTS[kind]
    out = tmp_path / "my 'cells' $1"
    command = [scratch / 'python', '-c', HEAD + WRITERS[library], source, out, *arguments]
    run([str(word) for word in command])
    if after is not None:
        after(out)
    assert recognise(out, 'mmdet')[0] == name
    expected, found = objects(use(source)), objects(use(convert(out, scratch)))
    if 'unsplit' in kind:
        assert len(found['train']) == 80
        expected, found = dict(all=expected['train']), dict(all=found['train'] | found['val'])
    for split, images in expected.items():
        assert found[split].keys() == images.keys()
        for name, boxes in images.items():
            assert [box[0] for box in found[split][name]] == [box[0] for box in boxes]
            for one, other in zip(found[split][name], boxes):
                assert one[1:] == pytest.approx(other[1:], abs=2e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vocs_masks_become_the_same_label_maps(scratch, tmp_path):
    source, out = tmp_path / 'coco', tmp_path / 'masks'
    write_shapes('coco', source, 6, 4, (64, 64))
    move(source, PLACES)
    distinct_names(source, PLACES)
    kind = ['voc_segmentation']
    write = WRITERS['datumaro'].replace('.export', ".transform('polygons_to_masks').export")
    run([str(word) for word in (scratch / 'python', '-c', HEAD + write, source, out, *kind)])
    with pytest.raises(UserError, match=r'Pascal VOC \(masks\), for segmentation'):
        use(out)
    cfg = use(convert(out, scratch, 'mmseg'), 'mmseg')
    init_default_scope('mmseg')
    for split, count in (('train', 6), ('val', 4)):
        steps = [dict(type='LoadAnnotations')]
        dataset = DATASETS.build(dict(cfg[f'{split}_dataloader'].dataset, pipeline=steps))
        assert dataset.metainfo['classes'] == ('background', *CLASSES)
        coco = COCOApi(source / PLACES[split][0])
        for number, image in coco.imgs.items():
            [found] = [x for x in dataset if Path(x['img_path']).name == image['file_name']]
            expected = np.zeros((64, 64), np.uint8)
            for ann in coco.imgToAnns[number]:
                expected[coco.annToMask(ann) > 0] = ann['category_id']
            assert (found['gt_seg_map'] == expected).all()
        assert len(dataset) == len(coco.imgs) == count
