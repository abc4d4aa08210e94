import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cyclemlp_mm.apis.arguments import parse
from cyclemlp_mm.apis.prepare import prepare_config
from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco, write_image_folders
from cyclemlp_mm.engine import class_palette, load_config, use_own_data
from cyclemlp_mm.engine.config_data import heads_classes
from cyclemlp_mm.errors import MissingFileError, UserError

RETINANET, MASK_RCNN = 'retinanet_cyclemlp_b1_fpn_1x_coco', 'mask_rcnn_cyclemlp_b1_fpn_1x_coco'
UPERNET = 'upernet_cyclemlp_b1_512x512_160k_ade20k'


@pytest.fixture(scope='module')
def coco_original(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp('coco') / 'shapes', 3, 2, (64, 48))


@pytest.fixture(scope='module')
def ade_original(tmp_path_factory):
    return write_ade20k(tmp_path_factory.mktemp('ade') / 'shapes', 3, 2, (64, 48))


@pytest.fixture
def coco(coco_original, tmp_path):
    return shutil.copytree(coco_original, tmp_path / 'coco')


@pytest.fixture
def ade(ade_original, tmp_path):
    return shutil.copytree(ade_original, tmp_path / 'ade')


def rewrite(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))


@pytest.mark.parametrize('name', [RETINANET, MASK_RCNN])
def test_coco_layout(coco, name):
    cfg = use_own_data(load_config(name), coco)
    content = json.loads((coco / 'annotations/instances_train2017.json').read_text())
    names = tuple(category['name'] for category in content['categories'])
    for phase in ('train', 'val', 'test'):
        dataset = cfg[f'{phase}_dataloader'].dataset
        assert dataset.data_root == str(coco)
        assert dataset.metainfo.classes == names
    assert cfg.train_dataloader.dataset.data_prefix.img == 'train2017/'
    for phase in ('val', 'test'):
        assert cfg[f'{phase}_evaluator'].ann_file == f'{coco}/annotations/instances_val2017.json'
    found = list(dict(heads_classes(cfg.model)).values())
    assert found == [len(names)] * (1 if name == RETINANET else 2)


def test_coco_subset_of_classes_keeps_the_files_order(coco):
    cfg = use_own_data(load_config(RETINANET), coco, classes=['star', 'circle'])
    assert cfg.train_dataloader.dataset.metainfo.classes == ('circle', 'star')
    assert cfg.model.bbox_head.num_classes == 2
    with pytest.raises(UserError, match=r"\['dog'\] are not in"):
        use_own_data(load_config(RETINANET), coco, classes=['dog'])


def test_wrapped_data_sets_and_several_evaluators(coco):
    cfg = load_config(RETINANET)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner, inner])
    )
    cfg.val_evaluator = [cfg.val_evaluator, dict(type='DumpDetResults', out_file_path='x.pkl')]
    use_own_data(cfg, coco)
    assert all(one.data_root == str(coco) for one in cfg.train_dataloader.dataset.dataset.datasets)
    assert cfg.val_evaluator[0].ann_file.startswith(str(coco))


def test_categories_go_by_name_and_names_must_agree(coco):
    file = coco / 'annotations/instances_val2017.json'
    categories = json.loads(file.read_text())['categories']
    rewrite(file, categories=categories[::-1])
    cfg = use_own_data(load_config(RETINANET), coco)
    names = tuple(category['name'] for category in categories)  # of the training's file
    assert all(cfg[f'{p}_dataloader'].dataset.metainfo.classes == names for p in ('val', 'test'))
    rewrite(file, categories=categories[1:])
    with pytest.raises(UserError, match='category names of train and val differ'):
        use_own_data(load_config(RETINANET), coco)


TRAIN, VAL = (f'annotations/instances_{split}2017.json' for split in ('train', 'val'))


def without_masks(coco):
    annotations = json.loads((coco / TRAIN).read_text())['annotations']
    boxes = [{k: v for k, v in a.items() if k != 'segmentation'} for a in annotations]
    rewrite(coco / TRAIN, annotations=boxes)
    use_own_data(load_config(RETINANET), coco)


def as_roboflow_exports(coco):
    (coco / 'train2017').rename(coco / 'train')
    (coco / TRAIN).rename(coco / 'train/_annotations.coco.json')


def categories(*found):
    return lambda coco: rewrite(coco / TRAIN, categories=list(found))


A, B = dict(id=1, name='a'), dict(id=1, name='b')


@pytest.mark.parametrize(
    'spoil, message',
    [
        (categories(), 'has no categories'),
        (categories(A, dict(A, id=2)), 'double'),
        (categories(A, B), 'double'),
        (categories(dict(name='a')), 'needs an "id"'),
        (without_masks, 'mask head needs masks'),
        (lambda coco: (coco / VAL).write_text('{'), 'is no JSON'),
        (lambda coco: (coco / VAL).write_text('[]'), 'is no COCO'),
        (shutil.rmtree, 'no such folder'),
        (lambda coco: shutil.rmtree(coco / 'val2017'), 'COCO 2017: it lacks val2017/'),
        (lambda coco: (coco / TRAIN).unlink(), 'COCO 2017: it lacks annotations/instances_train'),
        (as_roboflow_exports, r'train/_annotations\.coco\.json is as Roboflow'),
    ],
)
def test_what_is_wrong_with_a_coco_folder(coco, spoil, message):
    spoil(coco)
    with pytest.raises(UserError, match=message):
        use_own_data(load_config(MASK_RCNN), coco)


def test_ade20k_layout(ade):
    cfg = use_own_data(load_config(UPERNET), ade)
    names = tuple((ade / 'classes.txt').read_text().split())
    for phase, part in (('train', 'training'), ('val', 'validation'), ('test', 'validation')):
        dataset = cfg[f'{phase}_dataloader'].dataset
        assert (dataset.type, dataset.data_root) == ('BaseSegDataset', str(ade))
        assert dataset.data_prefix.img_path == f'images/{part}'
        assert dataset.reduce_zero_label is True
        assert dataset.metainfo.classes == names
        steps = [step.type for step in dataset.pipeline]
        assert steps[steps.index('LoadAnnotations') + 1] == 'CheckLabels'
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == len(names)


def test_labels_counted_from_zero(ade):
    (ade / 'classes.txt').unlink()
    with pytest.raises(MissingFileError, match=r'classes\.txt is missing.*--classes'):
        use_own_data(load_config(UPERNET), ade)
    cfg = use_own_data(load_config(UPERNET), ade, ['sky', 'road', 'car'], ignore_label=11)
    dataset = cfg.val_dataloader.dataset
    assert dataset.reduce_zero_label is False
    [check] = [step for step in dataset.pipeline if step.type == 'CheckLabels']
    assert (check.num_classes, check.ignore_label) == (3, 11)


def test_other_data_for_the_config_of_an_earlier_run(ade):
    """One label check, of the new data: the old one would ignore what is a class now."""
    cfg = use_own_data(load_config(UPERNET), ade, ['sky', 'road', 'car'], ignore_label=3)
    use_own_data(cfg, ade, ['sky', 'road', 'car', 'tree'], ignore_label=255)
    for phase in ('train', 'val', 'test'):
        steps = cfg[f'{phase}_dataloader'].dataset.pipeline
        checks = [(s.num_classes, s.ignore_label) for s in steps if s.type == 'CheckLabels']
        assert checks == [(4, 255)]


@pytest.mark.parametrize(
    'classes, ignore_label, message',
    [
        (['a', 'b', 'c'], 2, 'must be 3 to 255'),
        (['a', 'b', 'c'], 0, 'leave --ignore-label out'),
        (['a', 'b', 'c'], 256, 'must be 3 to 255'),
        (['a', 'a'], None, 'double'),
        (['a'], None, 'at least two'),
    ],
)
def test_wrong_segmentation_classes(ade, classes, ignore_label, message):
    with pytest.raises(UserError, match=message):
        use_own_data(load_config(UPERNET), ade, classes, ignore_label)


def test_images_and_labels_must_pair_up(ade):
    first = sorted((ade / 'annotations/training').iterdir())[0]
    first.unlink()
    with pytest.raises(MissingFileError, match=f'1 of 3 images.*{first.stem}'):
        use_own_data(load_config(UPERNET), ade)
    shutil.rmtree(ade / 'images/training')
    with pytest.raises(MissingFileError, match='ADE20K: it lacks images/training'):
        use_own_data(load_config(UPERNET), ade)


def test_png_images_work_and_mixtures_are_refused(ade):
    folder = ade / 'images/training'
    for i, path in enumerate(sorted(folder.iterdir())):
        Image.open(path).save(path.with_suffix('.png'))
        path.unlink()
        if i == 0:
            with pytest.raises(UserError, match=r'mixes \.jpg, \.png'):
                use_own_data(load_config(UPERNET), ade)
    cfg = use_own_data(load_config(UPERNET), ade)
    assert cfg.train_dataloader.dataset.img_suffix == '.png'
    assert cfg.val_dataloader.dataset.img_suffix == '.jpg'


def test_ignore_label_is_for_segmentation(coco):
    with pytest.raises(UserError, match='--ignore-label is for segmentation'):
        use_own_data(load_config(RETINANET), coco, ignore_label=3)


def test_palette_has_distinct_colours():
    colours = class_palette(150)
    assert len(set(colours[:28])) == 28
    assert np.array(colours).min() >= 0 and np.array(colours).max() <= 255


def test_a_folder_of_validation_alone_can_be_tested(coco, ade, tmp_path):
    birds = write_image_folders(tmp_path / 'birds', 3, 2, (48, 48))
    for folder, train, name in (
        (coco, ['train2017', 'annotations/instances_train2017.json'], RETINANET),
        (ade, ['images/training', 'annotations/training'], UPERNET),
        (birds, ['train'], 'cyclemlp_b1_in1k'),
    ):
        whole = use_own_data(load_config(name), folder)
        for part in train:
            path = folder / part
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for command in ([], ['--cfg-options', 'randomness.seed=1']):
            args = parse('test', [name, 'x.pth', '--data', str(folder), *command])
            cfg = prepare_config(args, needed=('val',))
            assert cfg.test_dataloader.dataset.data_root == str(folder)
            assert cfg.test_dataloader.dataset.metainfo == whole.test_dataloader.dataset.metainfo
            assert dict(heads_classes(cfg.model)) == dict(heads_classes(whole.model))
        with pytest.raises(MissingFileError, match=train[0]):
            use_own_data(load_config(name), folder)


def test_a_test_needs_the_validation_part(coco):
    shutil.rmtree(coco / 'val2017')
    with pytest.raises(MissingFileError, match='lacks val2017'):
        use_own_data(load_config(RETINANET), coco, needed=('val',))


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-8'])
def test_encodings_of_class_names(ade, encoding):
    names = ['背景', 'Straße', 'c', 'd', 'e']
    (ade / 'classes.txt').write_bytes('\r\n'.join(names).encode(encoding))
    cfg = use_own_data(load_config(UPERNET), ade)
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == names
    (ade / 'classes.txt').write_bytes('背景\n'.encode('gbk'))
    with pytest.raises(UserError, match=r'classes\.txt is not in UTF-8'):
        use_own_data(load_config(UPERNET), ade)
    for other in ('utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-le'):
        (ade / 'classes.txt').write_bytes('sky\nroad\n'.encode(other))
        with pytest.raises(UserError, match=r'classes\.txt is not in UTF-8 \(it holds NULs'):
            use_own_data(load_config(UPERNET), ade)


def test_hidden_files_of_a_mac_are_left_out(ade):
    for image in list(ade.glob('images/*/*.jpg')):
        image.with_name(f'._{image.name}').write_bytes(bytes(99))
    use_own_data(load_config(UPERNET), ade)


def test_labels_in_another_normal_form(ade):
    image = next(ade.glob('images/training/*.jpg'))
    label = ade / 'annotations' / 'training' / f'{image.stem}.png'
    image.rename(image.with_name('é.jpg'))
    label.rename(label.with_name('e\u0301.png'))
    with pytest.raises(MissingFileError, match=r'have no label.*another spelling .*NFC'):
        use_own_data(load_config(UPERNET), ade)
