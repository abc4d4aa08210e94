"""Layouts of data folders, recognised by their content, and commands that convert other ones."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from cyclemlp_mm.datasets.coco_file import read_coco
from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES
from cyclemlp_mm.errors import MissingFileError, UserError, some

COCO = {
    'train': ('annotations/instances_train2017.json', 'train2017/'),
    'val': ('annotations/instances_val2017.json', 'val2017/'),
}
ADE20K = {
    'train': ('images/training', 'annotations/training'),
    'val': ('images/validation', 'annotations/validation'),
}
#: What SegNet's authors made of CamVid, and datumaro writes: label maps of names in another file.
CAMVID = {'train': ('train', 'trainannot'), 'val': ('val', 'valannot')}
#: None where a folder is not in a layout; else the command that converts it, or '', and the folder
#: that ``--data`` then takes.
Found: TypeAlias = tuple[str, Path] | None
#: By a config's ``default_scope``: its task, and configs of it.
TASKS = {
    'mmdet': (
        'detection',
        'retinanet_cyclemlp_b1_fpn_1x_coco (boxes) or mask_rcnn_cyclemlp_b1_fpn_1x_coco (masks)',
    ),
    'mmseg': ('segmentation', 'fpn_cyclemlp_b1_512x512_40k_ade20k'),
    'mmpretrain': ('classification', 'cyclemlp_b1_50e_small'),
}
#: Splits by the beginning of a word in a path; test is taken where there is no val.
_SPLITS = {'train': r'train(?!val)', 'val': 'val', 'test': 'test'}
_NO_CLASSES = ('images', 'labels', 'annotations', 'jpegimages')
# Parts are merged before they are written, so that all files list the same classes.
_SUPERVISION = (
    'import supervision as sv; D = sv.DetectionDataset; '
    'd = D.merge([D.from_{kind}(*p) for p in {parts}]); '
)
_WRITE_PARTS = (
    '[D(d.classes, n, {k: d.annotations[k] for k in n})'
    '.as_coco(annotations_path=f"{f}/_annotations.coco.json") '
    'for f in FOLDERS for n in [[k for k in d.image_paths if k.rpartition("/")[0] == f]]]'
)
_WRITE_LISTS = (
    'from pathlib import Path as P; [D(d.classes, n, {k: d.annotations[k] for k in n})'
    '.as_coco(annotations_path=f"{f}/{s}.json") for f in FOLDERS for s in ("train", "val") '
    'for t in [P(f).parent.joinpath("ImageSets/Main", s + ".txt").read_text().split()] '
    'for n in [[k for k in d.image_paths if P(k).stem in t]]]'
)
_WRITE_HALVES = (
    '[h.as_coco(annotations_path=f"{f}/{s}.json") for f in FOLDERS '
    'for s, h in zip(("train", "val"), d.split(0.8, random_state=0))]'
)
_DATUMARO = (
    'import datumaro as dm; d = dm.Dataset.import_from({folder}, "{kind}"); len(d.subsets()) > 1 '
    'or d.transform("random_split", splits=[("train", 0.8), ("val", 0.2)]); '
    'd.export({out}, {how}, save_media=True)'
)
_TO_COCO = 'coco', '"coco_instances"'
_TO_CAMVID = 'camvid', '"camvid", apply_colormap=False'


def split_of(path: Path) -> str | None:
    """'train', 'val' or 'test', by the last word of a relative path that begins so; or None."""
    for word in reversed(re.split(r'[^a-z]+', path.as_posix().lower())):
        for split, start in _SPLITS.items():
            if re.match(start, word):
                return split
    return None


def find_coco(root: Path) -> dict[str, tuple[str, str]]:
    """COCO files of a folder and the folders of their images, relative to it, by split.

    A split in COCO 2017's layout is taken as it is; else every JSON file, at most two folders deep,
    with "images" and "categories" counts, and splits go by the names of files and folders.

    Raises:
        UserError: A split has several files, or no split is named in any; lists them.
        MissingFileError: No folder, or several, have the images of a file.
    """
    usual = {s: parts for s, parts in COCO.items() if (root / parts[0]).is_file()}
    files = [] if len(usual) == 2 else [f.relative_to(root) for f in _coco_files(root)]
    found = {split: [] for split in _SPLITS}
    for file in files:
        found.get(split_of(file), []).append(file)
    if not found['val']:
        found['val'] = found['test']
    chosen = {split: [Path(usual[split][0])] if split in usual else found[split] for split in COCO}
    how = 'Name one file per split, e.g. train.json and val.json, and move others away'
    for split, of_split in chosen.items():
        if len(of_split) > 1:
            listed = some([str(file) for file in of_split])
            raise UserError(f'{root} has several COCO files for {split}: {listed}. {how}')
    if files and not any(chosen.values()):
        listed = some([str(file) for file in files])
        raise UserError(f'{root} has COCO files that name neither train nor val: {listed}. {how}')
    return {
        split: (file.as_posix(), _images_of(root, file, split))
        for split, of_split in chosen.items()
        for file in of_split
    }


def _coco_files(root: Path) -> Iterator[Path]:
    for file in _files(root, 'json'):
        if not any(file.with_suffix(s).exists() for s in ('.jpg', '.png', '.jpeg', '.bmp')):
            try:
                read_coco(file)
            except UserError as error:
                if error.__cause__ is None:
                    continue  # JSON of something else
                raise
            yield file


def _images_of(root: Path, file: Path, split: str) -> str:
    """The folder, relative to ``root``, in which an annotation file's images are."""
    if file.as_posix() == COCO[split][0]:
        return COCO[split][1]  # a missing folder is reported as such
    images = read_coco(root / file)['images'][:100]
    names = [i['file_name'] for i in images if isinstance(i, dict) and 'file_name' in i]
    below = [p for pattern in ('*/', '*/*/', '*/*/*/') for p in root.glob(pattern) if p.is_dir()]
    same = [p for p in below if split_of(p.relative_to(root)) == split_of(file)]
    for group in ([(root / file).parent], [root], same, below):
        hits = [p for p in group if any((p / str(name)).is_file() for name in names)]
        if hits:
            break
    if len(hits) == 1:
        return '' if hits == [root] else f'{hits[0].relative_to(root).as_posix()}/'
    what = f'the images of {file}' + (f' ({names[0]}, …)' if names else ', which lists none')
    where = f'several folders: {some([str(p) for p in hits])}' if hits else 'no folder'
    raise MissingFileError(
        f'--data {root}: {where} with {what}: put them into the folder of {file.name}'
    )


def recognise(root: Path, scope: str) -> tuple[str, str, str, Path]:
    """A folder's layout; ``scope`` (a ``default_scope``) is the task that is looked for first.

    Returns:
        tuple: Name; task; command that converts it, '' where ``--data`` takes it as it is; and the
        folder to take after it. An unknown layout has no name and the task ``scope``.
    """
    for name, (task, look) in sorted(LAYOUTS.items(), key=lambda item: item[1][0] != scope):
        found = look(root)
        if found is not None:
            return name, task, *found
    return '', scope, '', root


def _files(root: Path, suffix: str) -> Iterator[Path]:
    for pattern in ('*', '*/*', '*/*/*'):
        yield from sorted(p for p in root.glob(f'{pattern}.{suffix}') if p.name[0] != '.')


def _folders(root: Path, suffix: str, mark: bytes = b'') -> list[Path]:
    """Folders whose first file of a suffix has ``mark`` near its beginning."""
    first = {}
    for file in _files(root, suffix):
        first.setdefault(file.parent, file)
    return [folder for folder, file in first.items() if mark in file.open('rb').read(4096)]


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())


def _coco(root: Path) -> Found:
    parts = (part for split in COCO.values() for part in split)
    is_coco = any((root / part).exists() for part in parts) or any(_coco_files(root))
    return ('', root) if is_coco else None


def _ade20k(root: Path) -> Found:
    parts = [*sum(ADE20K.values(), ()), *(labels for _, labels in CAMVID.values())]
    return ('', root) if any((root / part).is_dir() for part in parts) else None


def _classes(root: Path) -> Found:
    """Class folders, or lists; the other layouts' "images" is no class."""
    folders = (p for s in COCO for p in (root / s).glob('*/') if p.name.lower() not in _NO_CLASSES)
    is_there = any(root.glob('*_list.txt')) or any(map(_has_images, folders))
    return ('', root) if is_there else None


def _yolo(root: Path) -> Found:
    contents = {f: f.read_bytes() for f in (*root.glob('*.yaml'), *root.glob('*.yml'))}
    # Keypoints would be read as polygons.
    marked = [f for f, text in contents.items() if b'names' in text and b'kpt_shape' not in text]
    parts = []
    for labels in _folders(root, 'txt') if marked else []:
        names = labels.relative_to(root).parts
        if 'labels' in names:
            images = root.joinpath(*('images' if n == 'labels' else n for n in names))
            parts.append((images, labels, marked[0]))
    return _by_supervision(root, 'yolo', parts)


def _voc(root: Path) -> Found:
    parts = []
    for xmls in _folders(root, 'xml', b'<annotation>'):
        beside = xmls.parent / 'JPEGImages', xmls.parent / 'images'
        images = (xmls, *beside, xmls.parent.parent / 'images' / xmls.name)
        parts += [(p, xmls) for p in images if _has_images(p)][:1]
    return _by_supervision(root, 'pascal_voc', parts)


def _labelme(root: Path) -> Found:
    parts = [(p, p) for p in _folders(root, 'json', b'"shapes"') if _has_images(p)]
    return _by_supervision(root, 'labelme', parts)


def _by_supervision(root: Path, kind: str, parts: list[tuple[Path, ...]]) -> Found:
    if not parts:
        return None
    named = [part for part in parts if split_of(part[0].relative_to(root))]
    code = _WRITE_PARTS if named else _WRITE_HALVES
    if not named and all((parts[0][0].parent / f'ImageSets/Main/{s}.txt').is_file() for s in COCO):
        code = _WRITE_LISTS
    parts = named or parts[:1]
    listed = ', '.join(f'({", ".join(_text(p) for p in part)})' for part in parts)
    code = code.replace('FOLDERS', f'[{", ".join(_text(part[0]) for part in parts)}]')
    code = _SUPERVISION.format(kind=kind, parts=f'[{listed}]') + code
    return _command('supervision', code), root


def _by_datumaro(kind: str, name: str, mark: bytes, to: str, how: str) -> Callable[[Path], Found]:
    def look(root: Path) -> Found:
        for folder in (root, *sorted(root.glob('*/'))):
            if any(mark in file.open('rb').read(4096) for file in folder.glob(name)):
                out = root.with_name(f'{root.name}_{to}')
                code = _DATUMARO.format(folder=_text(folder), kind=kind, out=_text(out), how=how)
                return _command('datumaro', code), out
        return None

    return look


def _text(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)  # without ', which the shell's quoting needs


def _command(package: str, code: str) -> str:
    return f'pip install {package} && python -c {shlex.quote(code)}'


#: What a folder may be: its task, and the function that recognises it.
LAYOUTS = {
    'COCO': ('mmdet', _coco),
    'ADE20K or CamVid': ('mmseg', _ade20k),
    'YOLO (Ultralytics)': ('mmdet', _yolo),
    'YOLO (Darknet)': ('mmdet', _by_datumaro('yolo', 'obj.data', b'', *_TO_COCO)),
    'Pascal VOC': ('mmdet', _voc),
    'Pascal VOC (masks)': (
        'mmseg',
        _by_datumaro('voc_segmentation', 'SegmentationClass/*.png', b'', *_TO_CAMVID),
    ),
    'LabelMe': ('mmdet', _labelme),
    'CVAT': ('mmdet', _by_datumaro('cvat', '*.xml', b'<annotations>', *_TO_COCO)),
    'class folders': ('mmpretrain', _classes),
}
