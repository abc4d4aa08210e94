"""--data: folders in COCO's and ADE20K's layouts, and of images with a class each."""

import json
import shutil

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from cyclemlp_mm.datasets.shapes import (
    CLASSES,
    write_ade20k,
    write_coco,
    write_image_folders,
    write_image_lists,
)
from cyclemlp_mm.engine import class_palette, load_config, use_own_data
from cyclemlp_mm.engine.config_data import heads_classes
from cyclemlp_mm.errors import MissingFileError, UserError

RETINANET, MASK_RCNN = 'retinanet_cyclemlp_b1_fpn_1x_coco', 'mask_rcnn_cyclemlp_b1_fpn_1x_coco'
UPERNET, CLASSIFIER = 'upernet_cyclemlp_b1_512x512_160k_ade20k', 'cyclemlp_b1_in1k'
TRAIN, VAL = (f'annotations/instances_{split}2017.json' for split in ('train', 'val'))


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path / 'coco', 3, 2, (64, 48))


@pytest.fixture
def ade(tmp_path):
    return write_ade20k(tmp_path / 'ade', 3, 2, (64, 48))


@pytest.fixture
def folders(tmp_path):
    return write_image_folders(tmp_path / 'folders', 6, 3, (32, 32))


@pytest.fixture
def lists(tmp_path):
    return write_image_lists(tmp_path / 'lists', 6, 3, (32, 32))


def use(name, folder, *args, **kwargs):
    return use_own_data(load_config(name), folder, *args, **kwargs)


def data_of(cfg):
    return [cfg[f'{phase}_dataloader'].dataset for phase in ('train', 'val', 'test')]


def rewrite(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))


def change_lists(lists, change):
    for split in ('train', 'val'):
        file = lists / f'{split}_list.txt'
        file.write_text(''.join(change(split, line) for line in file.read_text().splitlines(True)))


def built(dataset):
    init_default_scope('mmpretrain')
    return DATASETS.build({**dataset, 'pipeline': []})


def labels(cfg, phase):
    """Names by file stem, as mmpretrain's own data set reads them."""
    dataset = built(cfg[f'{phase}_dataloader'].dataset)
    found = dataset.load_data_list()
    names = dataset.metainfo['classes']
    return {info['img_path'].rsplit('/', 1)[1]: names[info['gt_label']] for info in found}


@pytest.mark.parametrize('name', [RETINANET, MASK_RCNN])
def test_coco_layout(coco, name):
    cfg = use(name, coco)
    content = json.loads((coco / TRAIN).read_text())
    names = tuple(category['name'] for category in content['categories'])
    for dataset in data_of(cfg):
        assert (dataset.data_root, dataset.metainfo.classes) == (str(coco), names)
    assert cfg.train_dataloader.dataset.data_prefix.img == 'train2017/'
    for phase in ('val', 'test'):
        assert cfg[f'{phase}_evaluator'].ann_file == f'{coco}/{VAL}'
    found = list(dict(heads_classes(cfg.model)).values())
    assert found == [len(names)] * (1 if name == RETINANET else 2)


def test_coco_subset_of_classes_keeps_the_files_order(coco):
    cfg = use(RETINANET, coco, classes=['star', 'circle'])
    assert cfg.train_dataloader.dataset.metainfo.classes == ('circle', 'star')
    assert cfg.model.bbox_head.num_classes == 2


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
    categories = json.loads((coco / VAL).read_text())['categories']
    rewrite(coco / VAL, categories=categories[::-1])
    names = tuple(category['name'] for category in categories)  # of the training's file
    assert all(data.metainfo.classes == names for data in data_of(use(RETINANET, coco)))
    rewrite(coco / VAL, categories=categories[1:])
    with pytest.raises(UserError, match='category names of train and val differ'):
        use(RETINANET, coco)


def without(part):
    """Removes a part of a folder."""

    def remove(folder):
        path = folder / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


@pytest.mark.parametrize(
    'spoil, options, message',
    [
        (lambda coco: rewrite(coco / TRAIN, categories=[]), {}, 'has no categories'),
        (shutil.rmtree, {}, 'no such folder'),
        (without('val2017'), {}, 'COCO: it lacks val2017/'),
        (without('val2017'), dict(needed=('val',)), 'lacks val2017'),
        (str, dict(classes=['dog']), r"\['dog'\] are not in"),
        (str, dict(ignore_label=3), '--ignore-label is for segmentation'),
    ],
)
def test_mistakes_in_coco_folders(coco, spoil, options, message):
    spoil(coco)
    with pytest.raises(UserError, match=message):
        use(MASK_RCNN, coco, **options)


def test_ade20k_layout(ade):
    cfg = use(UPERNET, ade)
    names = tuple((ade / 'classes.txt').read_text().split())
    for dataset, part in zip(data_of(cfg), ('training', 'validation', 'validation')):
        assert (dataset.type, dataset.data_root) == ('BaseSegDataset', str(ade))
        assert dataset.data_prefix.img_path == f'images/{part}'
        assert dataset.reduce_zero_label is True and dataset.metainfo.classes == names
        steps = [step.type for step in dataset.pipeline]
        assert steps[steps.index('LoadAnnotations') + 1] == 'CheckLabels'
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == len(names)


def test_labels_counted_from_zero_and_other_data_for_that_config(ade):
    """One label check, of the new data: the old one would ignore what is a class now."""
    cfg = use(UPERNET, ade, ['sky', 'road', 'car'], ignore_label=3)
    for classes, ignored in ((None, None), (['sky', 'road', 'car', 'tree'], 255)):
        if classes:
            use_own_data(cfg, ade, classes, ignored)
        for dataset in data_of(cfg):
            assert dataset.reduce_zero_label is False
            steps = [step for step in dataset.pipeline if step.type == 'CheckLabels']
            expected = (4, 255) if classes else (3, 3)
            assert [(step.num_classes, step.ignore_label) for step in steps] == [expected]


def a_png(ade):
    image = next(ade.glob('images/training/*.jpg'))
    image.rename(image.with_suffix('.png'))


@pytest.mark.parametrize(
    'spoil, arguments, message',
    [
        (str, ['abc', 2], 'must be 3 to 255'),
        (str, ['abc', 0], 'leave --ignore-label out'),
        (str, ['abc', 256], 'must be 3 to 255'),
        (str, ['aa'], 'double'),
        (str, ['a'], 'at least two'),
        (without('classes.txt'), [], r'classes\.txt is missing.*--classes'),
        (a_png, [], r'mixes \.jpg, \.png'),
        (without('images/training'), [], 'ADE20K: it lacks images/training'),
    ],
)
def test_mistakes_in_ade20k_folders(ade, spoil, arguments, message):
    spoil(ade)
    with pytest.raises(UserError, match=message):
        use(UPERNET, ade, *arguments)


def test_png_images_and_hidden_files_of_a_mac(ade):
    for path in list(ade.glob('images/*/*.jpg')):
        path.with_name(f'._{path.name}').write_bytes(bytes(99))
    for path in list(ade.glob('images/training/[!.]*.jpg')):
        Image.open(path).save(path.with_suffix('.png'))
        path.unlink()
    found = data_of(use(UPERNET, ade))
    assert [dataset.img_suffix for dataset in found] == ['.png', '.jpg', '.jpg']


NAMES = ['背景', 'Straße', 'c', 'd', 'e']


@pytest.mark.parametrize(
    'encoding, is_read',
    [('utf-8-sig', True), ('utf-16', True), ('utf-8', True), ('gb18030', False)]
    + [(name, False) for name in ('utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-le')],
)
def test_encodings_of_class_names(ade, encoding, is_read):
    (ade / 'classes.txt').write_bytes('\r\n'.join(NAMES).encode(encoding))
    if is_read:
        assert list(use(UPERNET, ade).train_dataloader.dataset.metainfo.classes) == NAMES
    else:
        with pytest.raises(UserError, match=r'classes\.txt is not in UTF-8 .*save it as UTF-8'):
            use(UPERNET, ade)


def test_palette_has_distinct_colours():
    colours = class_palette(150)
    assert len(set(colours[:28])) == 28
    assert np.array(colours).min() >= 0 and np.array(colours).max() <= 255


@pytest.mark.parametrize(
    'kind, train, name',
    [
        ('coco', ['train2017', TRAIN], RETINANET),
        ('ade', ['images/training', 'annotations/training'], UPERNET),
        ('folders', ['train'], CLASSIFIER),
    ],
)
def test_a_folder_of_validation_alone_can_be_tested(kind, train, name, request):
    folder = request.getfixturevalue(kind)
    whole = use(name, folder)
    for part in train:
        without(part)(folder)
    cfg = use(name, folder, needed=('val',))
    assert cfg.test_dataloader.dataset == whole.test_dataloader.dataset
    assert cfg.model == whole.model
    with pytest.raises(MissingFileError, match=train[0]):
        use(name, folder)


def test_both_layouts_of_classification_give_the_same_labels(folders, lists):
    """Class folders count in alphabetical order, lists as classes.txt says."""
    cfg = use(CLASSIFIER, folders)
    dataset = cfg.train_dataloader.dataset
    assert dataset.metainfo.classes == tuple(sorted(CLASSES)) and 'split' not in dataset
    assert (dataset.type, dataset.data_prefix, dataset.ann_file) == ('CustomDataset', 'train', '')
    # No top-5 of four classes.
    topk = cfg.val_evaluator.topk, cfg.test_evaluator.topk, cfg.model.head.topk
    assert [tuple(k) for k in topk] == [(1,)] * 3
    cfg = use(CLASSIFIER, lists)
    assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 4
    assert built(cfg.train_dataloader.dataset).metainfo['classes'] == CLASSES
    for phase, count in (('train', 6), ('val', 3), ('test', 3)):
        files = (folders / ('train' if phase == 'train' else 'val')).rglob('*.jpg')
        by_folder = {path.name: path.parent.name for path in files}
        assert labels(cfg, phase) == by_folder and len(by_folder) == count


@pytest.mark.parametrize('place', ['{}.txt', 'meta/{}.txt'])
def test_names_of_lists_and_names_relative_to_the_root(lists, place):
    change_lists(lists, lambda split, line: f'{split}/{line}')
    (lists / 'meta').mkdir()
    for split in ('train', 'val'):
        (lists / f'{split}_list.txt').rename(lists / place.format(split))
    cfg = use(CLASSIFIER, lists)
    dataset = cfg.val_dataloader.dataset
    assert (dataset.ann_file, dataset.data_prefix) == (place.format('val'), '')
    assert len(labels(cfg, 'val')) == 3


def test_classes_without_a_file_of_names(lists):
    (lists / 'classes.txt').unlink()
    change_lists(lists, lambda split, line: line[:-2] + '6\n' if split == 'val' else line)
    cfg = use(CLASSIFIER, lists)
    assert cfg.train_dataloader.dataset.metainfo.classes == tuple('0123456')
    assert cfg.model.head.num_classes == 7


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def in_two_unicode_forms(folders):
    for split, name in (('train', 'é'), ('val', 'e\u0301')):
        rename(f'{split}/circle', f'{split}/{name}')(folders)


def without_class_folders(folders):
    without('train')(folders)
    (folders / 'train').mkdir()


@pytest.mark.parametrize(
    'kind, spoil, arguments, message',
    [
        ('folders', str, dict(classes=['a']), '--classes: .* has class folders'),
        ('folders', str, dict(ignore_label=3), '--ignore-label is for segmentation'),
        (
            'folders',
            rename('val/star', 'val/sun'),
            {},
            r"train: \['star'\], only in val: \['sun'\]",
        ),
        ('folders', in_two_unicode_forms, {}, r'folders of train and val differ.*NFC'),
        ('folders', without('train'), {}, 'of lists: it lacks train/'),
        ('folders', without_class_folders, {}, 'has no class folder'),
        ('lists', without('train_list.txt'), {}, 'no list for train'),
    ],
)
def test_mistakes_in_folders_and_lists(kind, spoil, arguments, message, request):
    folder = request.getfixturevalue(kind)
    spoil(folder)
    with pytest.raises(UserError, match=message):
        use(CLASSIFIER, folder, **arguments)


def test_images_of_every_suffix_are_read(folders):
    """mmpretrain's own list of suffixes lacks .webp, .tiff, .jfif, .gif and .avif."""
    files = sorted(folders.glob('train/*/*.jpg'))
    for file, suffix in zip(files, ('.webp', '.TIFF', '.jfif', '.gif', '.jp2')):
        Image.open(file).save(file.with_suffix(suffix), 'JPEG' if suffix == '.jfif' else None)
        file.unlink()
    assert len(built(use(CLASSIFIER, folders).train_dataloader.dataset)) == len(files)
