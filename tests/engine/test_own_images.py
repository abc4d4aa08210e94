"""--data of a classification config: class folders and lists."""

import pytest

from cyclemlp_mm.datasets.shapes import CLASSES, write_image_folders, write_image_lists
from cyclemlp_mm.engine import load_config, use_own_data
from cyclemlp_mm.errors import MissingFileError, UserError

pytest.importorskip('mmpretrain')
CONFIG = 'cyclemlp_b1_in1k'


@pytest.fixture
def folders(tmp_path):
    return write_image_folders(tmp_path / 'folders', 6, 3, (32, 32))


@pytest.fixture
def lists(tmp_path):
    return write_image_lists(tmp_path / 'lists', 6, 3, (32, 32))


def labels(cfg, phase):
    """Labels by file stem, as mmpretrain's own data set reads them."""
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmpretrain')
    dataset = DATASETS.build(cfg[f'{phase}_dataloader'].dataset)
    assert dataset.metainfo['classes'] == CLASSES
    return {
        info['img_path'].rsplit('/', 1)[1]: info['gt_label'] for info in dataset.load_data_list()
    }


def test_both_layouts_give_the_same_labels(folders, lists):
    for phase, count in (('train', 6), ('val', 3), ('test', 3)):
        # Class folders count in alphabetical order, lists as classes.txt says.
        cfg = use_own_data(load_config(CONFIG), lists)
        by_list = {name: CLASSES[label] for name, label in labels(cfg, phase).items()}
        split = 'train' if phase == 'train' else 'val'
        by_folder = {p.name: p.parent.name for p in (folders / split).rglob('*.jpg')}
        assert by_list == by_folder and len(by_list) == count
        assert cfg.model.head.num_classes == cfg.model.data_preprocessor.num_classes == 4


def test_no_top5_of_four_classes(folders):
    cfg = use_own_data(load_config(CONFIG), folders)
    assert tuple(cfg.val_evaluator.topk) == tuple(cfg.test_evaluator.topk) == (1,)
    assert tuple(cfg.model.head.topk) == (1,)


def test_class_folders(folders):
    cfg = use_own_data(load_config(CONFIG), folders)
    dataset = cfg.train_dataloader.dataset
    assert dataset.metainfo.classes == tuple(sorted(CLASSES))
    assert (dataset.type, dataset.data_prefix, dataset.ann_file) == ('CustomDataset', 'train', '')
    assert 'split' not in dataset


@pytest.mark.parametrize('place', ['{}.txt', 'meta/{}.txt'])
def test_names_of_lists(lists, place):
    (lists / 'meta').mkdir()
    for split in ('train', 'val'):
        (lists / f'{split}_list.txt').rename(lists / place.format(split))
    cfg = use_own_data(load_config(CONFIG), lists)
    assert cfg.val_dataloader.dataset.ann_file == place.format('val')
    assert len(labels(cfg, 'val')) == 3


def test_names_relative_to_the_root(lists):
    for split in ('train', 'val'):
        file = lists / f'{split}_list.txt'
        file.write_text(''.join(f'{split}/{line}\n' for line in file.read_text().splitlines()))
    cfg = use_own_data(load_config(CONFIG), lists)
    assert cfg.val_dataloader.dataset.data_prefix == ''
    assert len(labels(cfg, 'train')) == 6


def test_classes_without_a_file_of_names(lists):
    (lists / 'classes.txt').unlink()
    text = (lists / 'val_list.txt').read_text().splitlines()
    (lists / 'val_list.txt').write_text('\n'.join([*text[:-1], text[-1][:-1] + '6']))
    cfg = use_own_data(load_config(CONFIG), lists)
    assert cfg.train_dataloader.dataset.metainfo.classes == tuple('0123456')
    assert cfg.model.head.num_classes == 7


def test_mistakes_are_said(folders, lists, tmp_path):
    def refuse(root, message, error=UserError, **arguments):
        with pytest.raises(error, match=message):
            use_own_data(load_config(CONFIG), root, **arguments)

    refuse(folders, '--classes: .* has class folders', classes=['a'])
    refuse(folders, '--ignore-label is for segmentation', ignore_label=3)
    (folders / 'val' / 'star').rename(folders / 'val' / 'sun')
    refuse(folders, r"only in train: \['star'\], only in val: \['sun'\]")
    refuse(lists, 'labels up to ., but there are 2 class names', classes=['a', 'b'])
    (lists / 'train_list.txt').write_text('no label here\n')
    refuse(lists, r'train_list.txt, line 1: expected "NAME LABEL"')
    (lists / 'train_list.txt').write_text('gone.jpg 0\n')
    refuse(lists, 'gone.jpg, which is neither in', MissingFileError)
    (lists / 'train_list.txt').unlink()
    refuse(lists, 'no list for train', MissingFileError)
    (tmp_path / 'empty').mkdir()
    refuse(tmp_path / 'empty', r'lacks train/, val/: expected train/CLASS/IMAGE', MissingFileError)
    for split in ('train', 'val'):
        (tmp_path / 'empty' / split).mkdir()
    refuse(tmp_path / 'empty', 'has no class folder', MissingFileError)


def test_imagenet_itself_is_read_in_both_layouts(folders, lists):
    """Without --data: mmpretrain's ImageNet finds meta/{train,val}.txt by itself."""
    from mmengine.registry import DATASETS, init_default_scope

    init_default_scope('mmpretrain')
    (lists / 'meta').mkdir()
    for split in ('train', 'val'):
        (lists / f'{split}_list.txt').rename(lists / 'meta' / f'{split}.txt')
    for root in (folders, lists):
        for split, count in (('train', 6), ('val', 3)):
            dataset = load_config(CONFIG)[f'{split}_dataloader'].dataset
            assert dataset.type == 'ImageNet'
            dataset.update(data_root=str(root), pipeline=[])
            if root == folders:  # four class folders, where ImageNet has a thousand
                dataset.metainfo = dict(classes=CLASSES)
            assert len(DATASETS.build(dataset)) == count


def test_images_of_every_suffix_are_read(folders):
    """mmpretrain's own list of suffixes lacks .webp, .tiff, .jfif, .gif and .avif."""
    from PIL import Image

    files = sorted(folders.glob('train/*/*.jpg'))
    before = len(files)
    for file, suffix in zip(files, ('.webp', '.TIFF', '.jfif', '.gif', '.jp2')):
        Image.open(file).save(file.with_suffix(suffix), 'JPEG' if suffix == '.jfif' else None)
        file.unlink()
    from mmengine.registry import DATASETS, init_default_scope

    data = use_own_data(load_config(CONFIG), folders).train_dataloader.dataset
    init_default_scope('mmpretrain')
    assert len(DATASETS.build({**data, 'pipeline': []})) == before


def test_encodings_of_lists_and_names(lists):
    names = (lists / 'classes.txt').read_text()
    for encoding in ('utf-8-sig', 'utf-16'):
        (lists / 'classes.txt').write_bytes(names.replace('\n', '\r\n').encode(encoding))
        assert len(labels(use_own_data(load_config(CONFIG), lists), 'val')) == 3
    (lists / 'classes.txt').write_bytes('straße\n'.encode('cp1252'))
    with pytest.raises(UserError, match=r'classes\.txt is not in UTF-8 .*save it as UTF-8'):
        use_own_data(load_config(CONFIG), lists)
    (lists / 'classes.txt').write_text(names)
    content = (lists / 'train_list.txt').read_text()
    (lists / 'train_list.txt').write_bytes(content.encode('utf-8-sig'))
    with pytest.raises(UserError, match=r'train_list\.txt begins with a byte-order mark'):
        use_own_data(load_config(CONFIG), lists)
    (lists / 'train_list.txt').write_text(content + '\n')  # which mmpretrain cannot split
    with pytest.raises(UserError, match=r'train_list\.txt, line 7: expected'):
        use_own_data(load_config(CONFIG), lists)


@pytest.mark.parametrize(
    'change, cause',
    [
        (lambda line: line.replace('.jpg', '.JPG'), 'capital letters'),
        (lambda line: line.replace('.', '%2E'), 'URL encoding'),
        (lambda line: 'sub\\' + line, 'backslashes'),
    ],
)
def test_the_cause_of_a_name_that_is_not_there(lists, change, cause):
    for split in ('train', 'val'):
        file = lists / f'{split}_list.txt'
        file.write_text(''.join(map(change, file.read_text().splitlines(True))))
        if cause == 'backslashes':
            (lists / split / 'sub').mkdir()
            for image in (lists / split).glob('*.jpg'):
                image.rename(lists / split / 'sub' / image.name)
    with pytest.raises(MissingFileError, match=f'another spelling .*{cause}'):
        use_own_data(load_config(CONFIG), lists)


def test_class_folders_in_another_normal_form(folders):
    for split, name in (('train', 'é'), ('val', 'e\u0301')):
        (folders / split / 'circle').rename(folders / split / name)
    with pytest.raises(UserError, match=r'folders of train and val differ.*NFC'):
        use_own_data(load_config(CONFIG), folders)
