"""What a test says about each class: AP by class, and which class is taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.runner import Runner
from torchvision.ops import box_iou

from cyclemlp_mm.visualization.figures import draw_confusion_matrix

#: Beyond this number of classes, nobody can read the picture.
MOST_CLASSES = 150
#: Boxes with a lower score do not count; least IoU of a match.
SCORE_THR, IOU_THR = 0.3, 0.5


def add_per_class_results(runner: Runner) -> None:
    """Let a test also report AP by class, and draw ``confusion_matrix.png``; not in the config."""
    evaluator, data = runner.test_loop.evaluator, runner.test_loop.dataloader.dataset
    names = getattr(data, 'metainfo', {})
    for metric in evaluator.metrics:
        if hasattr(metric, 'classwise'):
            metric.classwise = True
    if 1 < len(names.get('classes') or ()) <= MOST_CLASSES:
        metric = ConfusionMatrix(Path(runner.work_dir) / 'confusion_matrix.png')
        metric.dataset_meta = names
        evaluator.metrics.append(metric)


class ConfusionMatrix(BaseMetric):
    """Counts which class is predicted where another one is, and draws it into ``out_file``.

    Pixels of segmentors, images of classifiers. Of detectors, each box is matched with the true box
    that it covers best, the best score first; a true box without one is missed, a box without a
    true one is found on the background. ``matrix`` has the counts after the evaluation, int (N, N):
    true class, predicted class; for boxes with a last row (background) and a last column (missed).
    """

    default_prefix = 'confusion'

    def __init__(self, out_file: Path) -> None:
        super().__init__()
        self.out_file = out_file
        self.unit = 'images'
        self.matrix: np.ndarray | None = None

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Count what is in one batch; samples without ground truth add nothing."""
        number = len(self.dataset_meta['classes'])
        for sample in data_samples:
            if 'pred_instances' in sample and 'labels' in sample.get('gt_instances', ()):
                self.unit = 'boxes'
                truth, found = self._match(sample, number)
            elif 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
                self.unit = 'pixels'
                truth, found = (_flat(sample[k]['data']) for k in ('gt_sem_seg', 'pred_sem_seg'))
                truth, found = truth[truth < number], found[truth < number]
            elif len(sample.get('gt_label', ())) == 1:
                truth, found = _flat(sample['gt_label']), _flat(sample['pred_label'])
            else:
                truth = found = np.zeros(0, int)
            # A head may have more classes than the data.
            codes = truth * (number + 1) + np.minimum(found, number)
            counts = np.bincount(codes, minlength=(number + 1) ** 2)
            present = np.flatnonzero(counts)  # an image has few of the classes
            self.results.append((present, counts[present]))

    def _match(self, sample: dict, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of true and predicted boxes, pair by pair; ``number`` is the background."""
        truth, found = sample['gt_instances'], sample['pred_instances']
        order = torch.argsort(found['scores'], descending=True, stable=True)
        order = order[found['scores'][order] >= SCORE_THR].cpu()
        boxes, labels = found['bboxes'].cpu()[order], _flat(found['labels'])[order.numpy()]
        true_boxes, true_labels = _boxes(truth), _flat(truth['labels'])
        iou = box_iou(boxes, true_boxes).numpy()
        ignored = _boxes(sample.get('ignored_instances') or {})
        on_ignored = (box_iou(boxes, ignored) >= IOU_THR).any(1).numpy()
        pairs, missed = [], set(range(len(true_labels)))
        for i, label in enumerate(labels):
            best = iou[i].argmax() if missed else None
            if best is not None and iou[i, best] >= IOU_THR:
                iou[:, best] = 0  # taken
                missed.discard(int(best))
                pairs.append((true_labels[best], label))
            elif not on_ignored[i]:
                pairs.append((number, label))
        pairs += [(true_labels[i], number) for i in missed]
        array = np.array(pairs, int).reshape(-1, 2)
        return array[:, 0], array[:, 1]

    def compute_metrics(self, results: list) -> dict:
        """Draw the picture and log the most frequent confusions; there is no figure."""
        names = list(self.dataset_meta['classes'])
        number = len(names)
        matrix = np.zeros((number + 1) ** 2, int)
        for codes, counts in results:
            matrix[codes] += counts
        matrix = matrix.reshape(number + 1, -1)
        classes = matrix[:number, :number] if self.unit != 'boxes' else matrix
        if not matrix.any() or not is_main_process():
            return {}
        self.matrix = classes
        draw_confusion_matrix(classes, names, self.unit, self.out_file)
        share = matrix[:number] / np.maximum(matrix[:number].sum(1, keepdims=True), 1)
        if self.unit == 'images':
            right = [f'{name} {share[i, i]:.1%}' for i, name in enumerate(names)]
            print_log(f'right by class: {", ".join(right)}', 'current')
        wrong = share[:, :number] * (1 - np.eye(number))
        worst = np.argsort(-wrong, axis=None, kind='stable')[:5]
        pairs = [divmod(int(i), number) for i in worst if wrong.flat[i] > 0]
        texts = [f'{names[a]} as {names[b]} {wrong[a, b]:.1%}' for a, b in pairs]
        print_log(f'most often confused: {", ".join(texts) or "nothing"}', 'current')
        print_log(f'confusion matrix of {self.unit}: {self.out_file}', 'current')
        return {}


def _boxes(instances: dict) -> torch.Tensor:
    """True boxes as a tensor (N, 4); mmdet wraps them in a class of its own."""
    boxes = instances.get('bboxes', torch.zeros(0, 4))
    return getattr(boxes, 'tensor', boxes).cpu()


def _flat(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(int).ravel()
