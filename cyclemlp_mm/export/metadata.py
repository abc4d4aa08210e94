"""What a program needs to run an exported file as the test pipeline of its config would."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from torch import nn

from cyclemlp_mm.engine.bad_images import check_max_value
from cyclemlp_mm.engine.config_data import palette_of
from cyclemlp_mm.errors import UserError, shorten
from cyclemlp_mm.inference.inputs import test_data
from cyclemlp_mm.inference.predictor import names_for

from .parts import ExportedPart

SCORE_THR = 0.3  # from which on objects are drawn, as by tools/infer.py
TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
#: By type of a step that changes the image: its settings, with their defaults.
STEPS = {
    'Resize': dict(scale=None, keep_ratio=False, backend='cv2', interpolation='bilinear'),
    'ResizeToMultiple': dict(size_divisor=32, interpolation=None),
    'ResizeEdge': dict(scale=None, edge='short', backend='cv2', interpolation='bilinear'),
    'CenterCrop': dict(crop_size=None),
}
#: Settings with the values that tools/run_exported.py has.
VALUES = {
    'backend': ('cv2', 'pillow'),
    'interpolation': ('bilinear', 'bicubic', None),
    'edge': ('short',),
    'color_type': ('color',),
    'imdecode_backend': ('cv2',),
    'to_float32': (False,),
}
#: Settings that change nothing in the image as the model gets it.
_UNUSED = ('type', 'backend_args', 'ignore_empty', 'clip_object_border')
_PREPROCESSORS = ('DetDataPreprocessor', 'SegDataPreProcessor', 'ClsDataPreprocessor')


def describe(cfg: Config, part: ExportedPart, model: nn.Module, content: dict, source: str) -> dict:
    """What an ONNX file says of itself, as text by key.

    ``config``, ``input``, ``channels``, ``mean`` and ``std`` are for readers; ``cyclemlp_mm`` is
    the json that tools/run_exported.py reads: task, part, class names, palette, thresholds and
    pre-processing. Where that tool cannot run the file, its ``reasons`` say why.

    Args:
        cfg (Config): Of the model.
        part (ExportedPart): What is exported.
        model (nn.Module): The whole model.
        content (dict): Of the checkpoint; names of the classes are looked for there first.
        source (str): Its name, for messages.
    """
    norm = cfg.model.get('data_preprocessor') or {}
    mean, std = (list(norm.get(key) or ()) for key in ('mean', 'std'))
    to_rgb = bool(norm.get('bgr_to_rgb') or norm.get('to_rgb'))
    steps, reasons = _steps(test_data(cfg).get('pipeline') or cfg.get('test_pipeline') or ())
    facts = dict(format=1, task=TASKS[cfg.default_scope], part=part.part)
    facts.update(mean=mean, std=std, to_rgb=to_rgb, steps=steps, pad=_padding(cfg), reasons=reasons)
    if part.part == 'model':
        try:
            meta = names_for(content, cfg, source)
            names = list(meta['classes'])
            facts.update(classes=names, palette=palette_of(meta, len(names)), score_thr=SCORE_THR)
        except UserError as error:
            reasons.append(str(error))
    else:
        reasons.append(f'it holds the {part.part}: export with --part model')
    test_cfg = model.roi_head.test_cfg if hasattr(model, 'roi_head') else {}
    facts['mask_thr'] = test_cfg.get('mask_thr_binary')
    others = {
        'image_max_value': check_max_value(cfg) is not None,
        f'{part.channels} channels': part.channels != 3,
        f'the data_preprocessor {norm.get("type")}': norm.get('type') not in _PREPROCESSORS,
        'rgb_to_bgr': norm.get('rgb_to_bgr', False),
        'test_cfg.mode': (cfg.model.get('test_cfg') or {}).get('mode', 'whole') != 'whole',
        'decode_head.align_corners': getattr(model, 'align_corners', False),
        'a segmentor of one class': getattr(model, 'out_channels', 2) == 1,
        'several labels per image': 'MultiLabel' in type(getattr(model, 'head', None)).__name__,
    }
    reasons += [f'it does not support {name}' for name, is_set in others.items() if is_set]
    return dict(
        config=Path(cfg.filename).stem,
        input='float32 (batch, channels, height, width), (pixel - mean) / std',
        channels='RGB' if to_rgb else 'as loaded',
        mean=json.dumps(mean),
        std=json.dumps(std),
        cyclemlp_mm=json.dumps(facts),
    )


def _steps(pipeline: Sequence[dict]) -> tuple[list[dict], list[str]]:
    """The steps that change an image, and why tools/run_exported.py cannot take all of them."""
    steps, reasons = [], [] if pipeline else ['its config has no test pipeline']
    for step in pipeline:
        kind = str(step['type'])
        if kind in STEPS:
            known = {**STEPS[kind], **{k: v for k, v in step.items() if k in STEPS[kind]}}
            steps.append(dict(type=kind, **known))
        elif kind == 'LoadImageFromFile':
            known = VALUES
        elif re.fullmatch('.*Annotations|CheckLabels|Pack.*Inputs', kind):
            continue  # of labels, or of the end
        else:
            reasons.append(f'it does not support the step {kind} of the test pipeline')
            continue
        for key, value in step.items():
            allowed = VALUES.get(key, (value,) if key in known or key in _UNUSED else ())
            if value not in allowed:
                reasons.append(f'it does not support {kind} with {key}={shorten(value)}')
    return steps, reasons


def _padding(cfg: Config) -> dict:
    """``size`` (height, width) or ``divisor`` that smaller images are padded to, and ``value``.

    A whole detector pads inside of its graph.
    """
    norm = cfg.model.get('data_preprocessor') or {}
    if cfg.default_scope == 'mmseg':
        rule = norm.get('test_cfg') or {}
        pad = dict(size=rule.get('size'), divisor=rule.get('size_divisor') or 1)
        return dict(pad, value=norm.get('pad_val', 0))
    divisor = 1 if cfg.default_scope == 'mmdet' else norm.get('pad_size_divisor', 1)
    return dict(size=None, divisor=divisor, value=norm.get('pad_value', 0))
