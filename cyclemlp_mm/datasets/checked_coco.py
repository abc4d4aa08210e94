"""mmdet's COCO data set and metric on one checked reading of the annotation file.

mmdet's own read the file twice and differently: classes in the order of the file whatever the
config names, boxes that training drops but the evaluation searches for, ids that pycocotools loses.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from cyclemlp_mm.errors import UserError

from .coco_file import LEFT_OUT, SHORT, annotations_kept, is_crowd, judge_coco, mask_trouble

CROWDS = 'are crowds ("iscrowd" or "ignore" of 1), which need not be found'


class CheckedCOCO(COCO):
    """An annotation file as training and evaluation both take it.

    - Annotations are numbered from 1: pycocotools takes id 0 for "not found".
    - Objects with ``ignore`` of 1 are crowds, as pycocotools overwrites the flag.
    - Boxes without area or outside their image are left out, as no detector can find them.
    - Masks that cannot be decoded are an error where masks are needed, and left out elsewhere.

    Args:
        with_masks (bool): Whether masks are decoded. Defaults to False.
        is_evaluated (bool): Whether pycocotools decodes them. Defaults to False.

    Raises:
        UserError: What :func:`cyclemlp_mm.datasets.coco_file.read_coco` raises, and boxes, ids or
            masks that mmdet or pycocotools cannot read.
    """

    @annotations_kept()  # pauses Python's collector of cycles, too
    def __init__(
        self, annotation_file: str | Path, with_masks: bool = False, is_evaluated: bool = False
    ) -> None:
        super().__init__()
        file = Path(annotation_file)
        judged = judge_coco(file)
        for what, fix in judged.errors:
            raise UserError(f'{file}: {what}. {fix}')
        if judged.content['annotations'] and not judged.used:
            reasons = '; '.join(f'{len(these)} {why}' for why, these in judged.troubles.items())
            raise UserError(f'{file}: none of its boxes can be used: {reasons}')
        self.counts = Counter({why: len(these) for why, these in judged.troubles.items()})
        annotations = []
        for number, ann in enumerate(judged.used, start=1):
            mask, crowd = ann.get('segmentation'), is_crowd(ann)
            trouble = mask_trouble(mask, judged.sizes[ann['image_id']], is_evaluated)
            if with_masks and trouble not in (None, SHORT):
                raise UserError(f'{file}: annotations {trouble}, e.g. id {ann["id"]}')
            self.counts[CROWDS] += crowd
            ann = dict(ann, id=number, iscrowd=int(crowd), ignore=0)
            if trouble and not with_masks:
                ann['segmentation'] = None
            annotations.append(ann)
        # Some versions of pycocotools read "info" without asking.
        self.dataset = {'info': {}, **judged.content, 'annotations': annotations}
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence = (), cat_ids: Sequence = ()
    ) -> list:
        """As pycocotools' ``getCatIds``, but names return their ids in the order of the names.

        Raises:
            UserError: The file has no category of a name.
        """
        if not cat_names:
            return super().get_cat_ids([], list(sup_names), list(cat_ids))
        ids = {category['name']: category['id'] for category in self.dataset['categories']}
        absent = [name for name in cat_names if name not in ids]
        if isinstance(cat_names, str) or absent:
            what = f'metainfo.classes={cat_names!r} does not fit the annotation file'
            raise UserError(f'{what}: write a tuple of its categories, {list(ids)}, in any order')
        return [ids[name] for name in cat_names]

    def loadCats(self, ids: Sequence | float | str = ()) -> list[dict]:
        """As pycocotools', but a single id may also be a text or 1.0."""
        several = not isinstance(ids, str) and hasattr(ids, '__iter__')
        return [self.cats[i] for i in (ids if several else [ids])]


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset``, with its settings, on a :class:`CheckedCOCO`.

    ``num_objects`` is the number of objects; None where ``indices`` leaves images out.
    """

    def load_data_list(self) -> list[dict]:
        """Images with their objects, labelled in the order of ``metainfo.classes``."""
        steps = self.pipeline.transforms
        with_masks = any(getattr(step, 'with_mask', False) for step in steps)
        self.COCOAPI = partial(CheckedCOCO, with_masks=with_masks)
        return super().load_data_list()

    def filter_data(self) -> list[dict]:
        """Leave images out as mmdet does, and count the objects of the others."""
        kept = super().filter_data()
        self._counted = len(kept), sum(len(image['instances']) for image in kept)
        return kept

    @property
    def num_objects(self) -> int | None:
        images, objects = self._counted
        return objects if images == len(self) else None


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` on a :class:`CheckedCOCO`; takes the same settings."""

    default_prefix = 'coco'

    @wraps(CocoMetric.__init__)  # its signature: unknown settings are found by it
    def __init__(self, ann_file: str | None = None, **settings: Any) -> None:
        super().__init__(None, **settings)
        if 100 not in self.proposal_nums:
            what = f'is {tuple(self.proposal_nums)}: COCO computes AP of the best 100 boxes'
            raise UserError(f'proposal_nums of the evaluator {what}. Add 100')
        self.iou_thrs = np.asarray(self.iou_thrs)  # pycocotools compares with each
        self._paths: dict[int, str] = {}
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = CheckedCOCO(path, 'segm' in self.metrics, is_evaluated=True)
            if not self._coco_api.anns and not self.format_only:
                raise UserError(
                    f'{ann_file}: "annotations" is empty or missing; to write predictions without '
                    'figures, set format_only=True and outfile_prefix of the evaluator'
                )
            for kind in (*LEFT_OUT, CROWDS):
                if number := self._coco_api.counts[kind]:
                    what = f'{ann_file}: {number} of its boxes {kind}'
                    print_log(what, 'current', logging.WARNING)
        self._ann_file = ann_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the predictions of one batch.

        Raises:
            UserError: An image is not the one that the annotation file has under its id.
        """
        for sample in data_samples if self._coco_api is not None else ():
            path = str(sample.get('img_path', ''))
            image = self._coco_api.imgs.get(sample['img_id'])
            if image is None or not path.endswith(image['file_name'] if path else ''):
                what = f'image {path or sample["img_id"]} is not in it under that id'
                raise UserError(
                    f'the evaluator reads {self._ann_file}, but {what}: set ann_file of evaluator '
                    'and data set to the same file'
                )
            if (other := self._paths.setdefault(sample['img_id'], path)) != path:
                raise UserError(
                    f'the evaluator reads {self._ann_file}, but {path} and {other} have the same '
                    'id: of several annotation files, make one with an id for each image'
                )
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The metrics, by name; those per class come last, under the class's own name."""
        if self._coco_api is not None:
            # pycocotools sorts the ids, and mmdet numbers its results per class by this list.
            self.cat_ids = sorted(self._coco_api.get_cat_ids(self.dataset_meta['classes']))
            there, done = len(self._coco_api.imgs), len({truth['img_id'] for truth, _ in results})
            if done < there:
                what = f'only {done} of the {there} images in {self._ann_file} were predicted'
                what += ': all objects of the others count as missed (indices, drop_last, or '
                print_log(f'{what}files that are not there?)', 'current', logging.WARNING)
        metrics = super().compute_metrics(results)
        if not metrics and not self.format_only:
            print_log(
                'no box was predicted in any image: there is no AP', 'current', logging.WARNING
            )
        return dict(sorted(metrics.items(), key=lambda item: item[0].endswith('_precision')))

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """Write predictions with the category id of each label's class; returns the files."""
        in_order = self.cat_ids
        self.cat_ids = self._coco_api.get_cat_ids(self.dataset_meta['classes'])
        try:
            return super().results2json(results, outfile_prefix)
        finally:
            self.cat_ids = in_order
