"""Test-time augmentation by the models of mmdet and mmseg: several views of an image, merged."""

import copy

from mmengine.config import Config, ConfigDict

from cyclemlp_mm.errors import UserError

from .config_data import data_sets, evaluators


def use_test_time_augmentation(cfg: Config) -> list[str]:
    """Let the test of ``cfg`` use its ``tta_model`` and ``tta_pipeline``, as the toolboxes do.

    mmdet merges boxes only: mask heads are left out, and boxes alone are evaluated.

    Args:
        cfg (Config): Changed in place: ``model`` and the pipelines of ``test_dataloader``.

    Returns:
        list[str]: What the user should know.

    Raises:
        UserError: The config has no ``tta_model`` or no ``tta_pipeline``, or the latter has no
            ``TestTimeAug``.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if not cfg.get(key):
            raise UserError(
                f'--tta: the config has no {key}. configs/_base_/datasets/coco_detection.py and '
                f'ade20k_512x512.py have one for detectors and segmentors; write {key} into yours'
            )
    if not any(step.get('type') == 'TestTimeAug' for step in cfg.tta_pipeline):
        raise UserError('--tta: tta_pipeline has no step TestTimeAug, which makes the views')
    for _, dataset in data_sets(cfg, ['test']):
        dataset.pipeline = copy.deepcopy(cfg.tta_pipeline)
    lines = _leave_out_masks(cfg) if cfg.get('default_scope') == 'mmdet' else []
    cfg.model = ConfigDict(dict(cfg.tta_model, module=cfg.model))
    return lines


def _leave_out_masks(cfg: Config) -> list[str]:
    head = cfg.model.get('roi_head') or {}
    if not head.get('mask_head'):
        return []
    head.mask_head = head.mask_roi_extractor = None
    for evaluator in evaluators(cfg, ['test']):
        if 'segm' in str(evaluator.get('metric')):
            evaluator.metric = 'bbox'
    return ['warning: --tta: mmdet merges boxes, not masks: masks are neither made nor evaluated']
