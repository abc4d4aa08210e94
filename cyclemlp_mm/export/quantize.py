"""int8 files by onnxruntime's own quantisation after training, and what they cost in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import Tensor, nn

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.inference.inputs import image_reader, test_data

from .check import Runner
from .parts import ExportedPart

#: Images of the calibration folder that are read, spread over it.
MAX_IMAGES = 100
#: Largest root mean square difference from float32 outputs, of their root mean square.
LIMIT = 0.5


def calibration_images(
    cfg: Config, part: ExportedPart, model: nn.Module, paths: Sequence[Path]
) -> list[Tensor]:
    """Images as the test pipeline of a config makes them: (1, C, H, W), float32, normalised.

    Args:
        cfg (Config): Of the model; its toolbox's scope must be the default.
        part (ExportedPart): What is exported; whole detectors get images without padding.
        model (nn.Module): The whole model.
        paths (Sequence[Path]): Images; of more than ``MAX_IMAGES``, so many are taken.

    Raises:
        UserError: An image cannot be read, or the config has no test pipeline.
    """
    steps = test_data(cfg).get('pipeline') or cfg.get('test_pipeline')
    if not steps:
        raise UserError(f'{cfg.filename} has no test pipeline, which prepares images: add one')
    prepare = Compose([step for step in steps if not str(step['type']).startswith('Load')])
    read, images = image_reader(cfg), []
    number = min(MAX_IMAGES, len(paths))
    for path in (paths[i * len(paths) // number] for i in range(number)):
        image = read(path)[0]
        size = tuple(image.shape[:2])
        facts = dict(img=image, img_path=str(path), img_id=0, img_shape=size, ori_shape=size)
        packed = prepare(facts)
        data = model.data_preprocessor(pseudo_collate([packed]), False)
        image = torch.as_tensor(data['inputs'])
        if part.is_whole_detector:
            height, width = packed['data_samples'].img_shape
            image = image[..., :height, :width]
        images.append(image)
    return images


def quantize(source: Path, path: Path, images: Sequence[Tensor]) -> None:
    """Write an int8 form of an ONNX file, in standard operators (QuantizeLinear and its inverse).

    Matrix products and convolutions are quantised: weights to int8, one scale per output channel,
    and what they multiply to uint8, from its smallest to its largest value in the images. What only
    moves values (the shifts) takes them as uint8. Results of products stay float32.

    Args:
        source (Path): An ONNX file of :func:`~cyclemlp_mm.export.export_model`, with
            ``constant_weights`` and an opset from 13 on.
        path (Path): To be written.
        images (Sequence[Tensor]): (B, C, H, W), see :func:`calibration_images`.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Images(CalibrationDataReader):
        """The images, one by one."""

        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict | None:
            """The next input, or None at the end."""
            image = next(self.left, None)
            return None if image is None else {'image': image.numpy()}

    products = ['MatMul', 'Gemm']
    graph = onnx.load(str(source)).graph
    quantize_static(
        str(source),
        str(path),
        Images(),
        quant_format=QuantFormat.QDQ,
        nodes_to_exclude=_left_in_float(graph),
        op_types_to_quantize=[*products, 'Conv', 'Slice', 'Pad', 'Concat'],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options=dict(OpTypesToExcludeOutputQuantization=products),
    )


def _left_in_float(graph: object) -> list[str]:
    """Names of products of an ``onnx.GraphProto`` that onnxruntime's int8 operators may get wrong.

    On processors with AMX, onnxruntime 1.23 returns wrong sums for some numbers of output channels
    that are no multiple of 16 (20, 24 and 216 among them). Products of two maps stay, too.
    """
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type in ('MatMul', 'Gemm', 'Conv'):
            shape = shapes.get(node.input[1], [1])
            transposed = any(a.name == 'transB' and a.i for a in node.attribute)
            channels = shape[0] if node.op_type == 'Conv' or transposed else shape[-1]
            if channels % 16:
                names.append(node.name)
    return names


def check_quantized(module: ExportedPart, run: Runner, images: Sequence[Tensor]) -> str:
    """Compare an int8 file with its model on images; returns a sentence.

    Raises a UserError where outputs differ by more than ``LIMIT``. It is not for whole detectors,
    whose objects have no fixed order.
    """
    squares = 0.0, 0.0
    for image in images:
        with torch.no_grad():
            for ours, theirs in zip(module(image), run(image), strict=True):
                pair = (theirs - ours).square().sum(), ours.square().sum()
                squares = tuple(a + float(b) for a, b in zip(squares, pair))
    difference = (squares[0] / squares[1]) ** 0.5
    if not difference <= LIMIT:
        fix = 'Calibrate on images like those that the model was trained on'
        raise UserError(f'int8 differs from float32 by {difference:.0%}: not written. {fix}')
    return f'int8 differs from float32 by {difference:.1%} (root mean square)'


def run_by(model: nn.Module, part: ExportedPart, run: Runner) -> None:
    """Replace a part of a model by an exported file of it, to evaluate the file."""
    if part.part == 'backbone':
        model.backbone.forward = lambda image: tuple(run(image))
    elif part.part == 'neck':
        model.extract_feat = lambda image: tuple(run(image))
    elif part.is_whole_detector:
        model.predict = _detect(model, run)
    elif part.is_segmentor:
        model.encode_decode = lambda image, metas: run(image)[0]
    else:
        model.extract_feat = lambda image, *args, **options: image
        model.head.forward = lambda image: run(image)[0]


def _detect(model: nn.Module, run: Runner) -> Callable:
    """A detector's ``predict``, which takes objects from an exported file."""
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
    from mmengine.structures import InstanceData

    def found(image: Tensor, meta: dict) -> Iterator[tuple[str, Tensor]]:
        height, width = meta['img_shape']
        boxes, scores, labels, *masks = run(image[None, :, :height, :width])
        boxes = boxes / boxes.new_tensor(meta['scale_factor']).repeat(2)
        yield from dict(bboxes=boxes, scores=scores, labels=labels).items()
        for mask in masks:
            size, threshold = meta['ori_shape'], model.roi_head.test_cfg.mask_thr_binary
            pasted = mask.new_zeros(0, *size)
            if len(mask):
                pasted, _ = _do_paste_mask(mask[:, None], boxes, *size, skip_empty=False)
            yield 'masks', pasted >= threshold

    def predict(images: Tensor, samples: list, rescale: bool = True) -> list:
        for image, sample in zip(images, samples):
            sample.pred_instances = InstanceData(**dict(found(image, sample.metainfo)))
        return samples

    return predict
