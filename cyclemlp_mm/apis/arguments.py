"""Command lines of all tools, with OpenMMLab's names.

At the top, this module imports the standard library only: ``--help`` does not wait for torch.
"""

import argparse
import ast
import os
import re
from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    """A parser whose ``--help`` ends with examples.

    Args:
        description (str, optional): What the tool does.
        examples (str, optional): Command lines.
        options (dict, optional): By name or flags, what ``add_argument`` takes.
    """

    def __init__(
        self, description: str | None = None, examples: str = '', options=None, **settings
    ) -> None:
        super().__init__(
            description=description,
            epilog=f'examples:\n{examples}' if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )
        for names, option in (options or {}).items():
            self.add_argument(*names.split(), **option)


def _key_and_text(pair: str) -> tuple[str, str]:
    key, equals, text = pair.partition('=')
    if not key or not equals:
        raise argparse.ArgumentTypeError(f'{pair!r} is not KEY=VALUE')
    return key, text.strip()


def _flag(text: str) -> dict:
    return dict(action='store_true', help=text)


def _number(default: int, text: str, metavar: str = 'N') -> dict:
    return dict(type=int, default=default, metavar=metavar, help=f'{text} (default: {default})')


CONFIG = {'config': dict(help='config file, or the name of a shipped config')}
CHECKPOINT = {'checkpoint': dict(help='checkpoint file')}
FORCE = {'--force': _flag('overwrite DST')}
DEVICE = {'--device': dict(help='cpu, cuda, cuda:1, … (default: a GPU if there is one)')}
DEPLOY = {
    '--deploy': _flag('fold norms and RepMLP branches into other layers, after loading the weights')
}
SCORE_THR = {
    '--score-thr': dict(type=float, default=0.3, metavar='S', help='minimum score (default: 0.3)')
}
UNSAFE_LOAD = {
    '--unsafe-load': _flag(
        'unpickle checkpoints that safe loading rejects: they can run any code, so only for files '
        'from a source you trust to run code'
    )
}
CFG_OPTIONS = {
    '--cfg-options': dict(
        nargs='+',
        action='extend',
        type=_key_and_text,
        metavar='KEY=VALUE',
        help='override settings of the config, including those that --data sets, e.g. '
        'train_dataloader.batch_size=4; values as in a config, in quotes if they contain brackets '
        'or spaces',
    )
}
MODEL = {**CONFIG, **CHECKPOINT, **UNSAFE_LOAD, **CFG_OPTIONS}
#: Of tools that make a run: work dir, data and processes.
RUN = {
    '--work-dir': dict(help='folder for logs and checkpoints (default: work_dirs/NAME-OF-CONFIG)'),
    **CFG_OPTIONS,
    **UNSAFE_LOAD,
    '--data': dict(
        metavar='DIR',
        help="your own data: a folder in COCO 2017's layout, ADE20K's, or of images sorted by "
        'class; sets paths, class names and num_classes',
    ),
    '--classes': dict(
        nargs='+',
        metavar='NAME',
        help='for --data. Segmentation: class names in the order of the labels (default: '
        'DIR/classes.txt); detection: the annotated classes to use (default: all)',
    ),
    '--ignore-label': dict(
        type=int,
        metavar='K',
        help='for --data. Segmentation: class ids start at 0, and K means "ignore" (default: they '
        'start at 1, and 0 means "ignore")',
    ),
    '--launcher': dict(
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='distributed launcher (default: none)',
    ),
    # Older launchers pass it.
    '--local_rank --local-rank': dict(type=int, help=argparse.SUPPRESS),
}

#: By tool: what it does, examples, options.
TOOLS = {
    'train': (
        'Train a detector, segmentor or classifier',
        """\
  tools/train.py configs/retinanet_cyclemlp_b2_fpn_1x_coco.py
  tools/train.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py --data my_streets --ignore-label 11
  tools/train.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --data my_cells --auto-scale-lr
  tools/train.py configs/mask_rcnn_cyclemlp_b1_fpn_1x_coco.py --resume
  tools/train.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --vis tensorboard
""",
        {
            **CONFIG,
            '--amp': _flag('automatic mixed precision: float16 on a GPU, bfloat16 on a CPU'),
            '--auto-scale-lr': _flag(
                "scale the learning rate by the actual batch size over the config's base_batch_size"
            ),
            '--resume': dict(
                nargs='?',
                const='auto',
                metavar='PATH',
                help="resume from a checkpoint; 'auto' or no value takes the latest in the work "
                'dir',
            ),
            '--skip-check': _flag('skip the check before training (see tools/check.py)'),
            '--vis': dict(
                nargs='+',
                choices=['tensorboard', 'wandb', 'mlflow', 'clearml', 'neptune', 'dvclive', 'aim'],
                default=[],
                help='also log scalars and pictures to these backends of mmengine',
            ),
            **RUN,
        },
    ),
    'test': (
        'Evaluate a checkpoint',
        """\
  tools/test.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py work_dirs/RUN/epoch_12.pth
  tools/test.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py CHECKPOINT --show-dir drawn
""",
        {
            **CONFIG,
            **CHECKPOINT,
            '--out': dict(metavar='FILE.pkl', help='write the predictions to a file'),
            '--show-dir': dict(metavar='DIR', help='draw predictions next to ground truth'),
            **DEPLOY,
            **RUN,
        },
    ),
    'check': (
        'Look for problems with data, config and machine, without training',
        """\
  tools/check.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --data my_cells
  tools/check.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py --data my_streets --full
""",
        {**CONFIG, '--full': _flag('check every image and label instead of a sample'), **RUN},
    ),
    'infer': (
        'Predict images and videos: boxes, masks or segments',
        """\
  tools/infer.py work_dirs/demo/retinanet_cyclemlp_demo.py work_dirs/demo/epoch_6.pth \\
      work_dirs/demo/data/val2017 --out found --json
  tools/infer.py fpn_cyclemlp_b1_512x512_40k_ade20k CHECKPOINT 'photos/**/*.jpg' walk.mp4
  tools/infer.py mask_rcnn_cyclemlp_b2_fpn_1x_coco CHECKPOINT aerial.tif --tile 1024
""",
        {
            **MODEL,
            'inputs': dict(
                nargs='+',
                metavar='IMAGES',
                help="files, folders or globs ('a/**/*.png'), of images and videos",
            ),
            '--out': dict(
                metavar='DIR',
                default='work_dirs/inferred',
                help='folder for vis/, masks/ and predictions.json (default: %(default)s)',
            ),
            **DEVICE,
            **SCORE_THR,
            **DEPLOY,
            '--batch-size': _number(1, 'images, frames or tiles at once'),
            '--json': _flag(
                "write predictions.json in COCO's format: boxes, masks as run-length codes, and "
                'all scores, also below --score-thr; for segments, the PNG and the areas of each '
                'image'
            ),
            '--as-stored': _flag(
                'ignore EXIF orientation: for results that are compared with annotations of the '
                'images as stored'
            ),
            '--no-vis': _flag('draw no pictures'),
            '--tile': dict(
                type=int,
                metavar='SIZE',
                help='cut images into overlapping tiles of SIZE x SIZE px: for images too large '
                'for the memory, or objects too small for the model',
            ),
            '--tile-overlap': dict(
                type=float,
                metavar='F',
                help='fraction of a tile that its neighbour covers too (default: 0.2)',
            ),
        },
    ),
    'export': (
        'Write a model as ONNX or torch.export file, checked against PyTorch',
        """\
  tools/export.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py CHECKPOINT fpn.onnx
  tools/export.py configs/cyclemlp_b1_in1k.py CycleMLP_B1.pth b1.onnx --part backbone
  tools/export.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py CHECKPOINT features.pt2
""",
        {
            **CONFIG,
            'checkpoint': dict(
                help='checkpoint file; for --part backbone, a published file or a whole model'
            ),
            'dst': dict(metavar='DST', help='file to write, .onnx or .pt2'),
            '--part': dict(
                choices=['backbone', 'neck', 'model'],
                help="outputs: levels of the backbone, levels of the neck, or the model's logits "
                '(default: neck for detectors, model for segmentors and classifiers)',
            ),
            '--time': dict(
                nargs=2,
                type=int,
                metavar=('HEIGHT', 'WIDTH'),
                help='then measure one image of this size on the CPU, with PyTorch and as exported',
            ),
            '--opset': dict(
                type=int,
                default=20,
                choices=range(11, 21),
                metavar='N',
                help='of an .onnx file, 11 to 20, for older readers (default: 20)',
            ),
            **FORCE,
            **UNSAFE_LOAD,
            **DEPLOY,
            **CFG_OPTIONS,
        },
    ),
    'convert_weights': (
        'Convert any CycleMLP checkpoint: published, Paddle, safetensors or our own files '
        '(backbones, classifiers, whole detectors and segmentors)',
        """\
  tools/convert_weights.py CycleMLP_B1.pth b1.safetensors
  tools/convert_weights.py cyclemlp_b1.pdparams CycleMLP_B1.pth --to published
  tools/convert_weights.py work_dirs/RUN/epoch_12.pth detector.pth      # without optimiser state
""",
        {
            'source': dict(metavar='SRC', help='file or http(s) URL'),
            'target': dict(metavar='DST', help='new file'),
            '--to': dict(
                choices=['ours', 'published', 'safetensors'],
                help='format of DST (default: safetensors for a DST of that suffix, else ours)',
            ),
            **FORCE,
            **UNSAFE_LOAD,
        },
    ),
    'get_flops': (
        'Count the parameters of a backbone or of a whole model, and the multiply-adds of one '
        'image, which papers call FLOPs; an operator that cannot be counted is an error',
        """\
  tools/get_flops.py --arch b1                                      # at 224 x 224
  tools/get_flops.py --arch b2 --size 800 1280
  tools/get_flops.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py
  tools/get_flops.py mask_rcnn_cyclemlp_b2_fpn_1x_coco --size 800 1216 --json
""",
        {
            'config': dict(nargs='?', help='config file, or the name of a shipped config'),
            '--arch': dict(metavar='NAME', help='a backbone alone, instead of CONFIG'),
            '--backbone': dict(
                default='CycleMLP', metavar='CLASS', help='of --arch (default: CycleMLP)'
            ),
            '--size': dict(
                nargs=2,
                type=int,
                metavar=('HEIGHT', 'WIDTH'),
                help='of the image (default: 224 224 for backbones and classifiers, 800 1280 for '
                'detectors, 512 512 for segmentors)',
            ),
            '--json': _flag('print the exact counts as json'),
            **CFG_OPTIONS,
        },
    ),
    'visualize': (
        'Draw what a model does and how its training went',
        """\
  tools/visualize.py staircase 3 5 7 --out staircase.png
  tools/visualize.py field cyclemlp_b1_in1k --weights CycleMLP_B1.pth --out field.png
  tools/visualize.py features work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth photo.jpg
  tools/visualize.py curves work_dirs/RUN work_dirs/OTHER_RUN --out curves.png
  tools/visualize.py gallery work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth --number 6
""",
        {},
    ),
    'web': (
        'Serve a web page that predicts the images dropped on it',
        """\
  tools/web.py                                  # the model of `make demo`, all others to choose
  tools/web.py --model work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth --port 8000
""",
        {
            '--model': dict(
                nargs=2,
                action='append',
                default=[],
                metavar=('CONFIG', 'CHECKPOINT'),
                help='a model to offer, the first one is selected; may be repeated',
            ),
            '--work-dirs': dict(
                metavar='DIR',
                default='work_dirs',
                help='offer every trained model in its folders (default: work_dirs)',
            ),
            **UNSAFE_LOAD,
            **DEVICE,
            '--host': dict(
                default='127.0.0.1',
                help='address to listen on; 0.0.0.0 lets other machines in, without a password '
                '(default: 127.0.0.1)',
            ),
            '--allow-host': dict(
                action='append',
                default=[],
                metavar='NAME',
                help='another name by which browsers reach the page; may be repeated (default: '
                'numeric addresses, localhost and the name of this machine)',
            ),
            '--port': dict(type=int, default=7860, help='default: 7860'),
            '--max-mb': dict(
                type=float, default=20, metavar='MB', help='largest accepted file (default: 20)'
            ),
        },
    ),
}
#: By sub-command of ``tools/visualize.py``: what it draws, options.
PICTURES = {
    'staircase': (
        'sampling pattern of a CycleFC with k taps',
        {
            'taps': dict(nargs='*', type=int, metavar='K', help='odd; default: 3 5 7'),
            '--channels': dict(type=int, metavar='C', help='channels shown (default: 2K+1)'),
        },
    ),
    'field': (
        'effective receptive field of each level, compared with ResNet-50',
        {
            **CONFIG,
            **UNSAFE_LOAD,
            **CFG_OPTIONS,
            '--weights': dict(
                metavar='FILE',
                help='a checkpoint that contains the backbone (default: random weights)',
            ),
            '--resnet-weights': dict(
                metavar='FILE', help="torchvision's ResNet-50 (default: random weights)"
            ),
            '--size': _number(224, 'side of the images', 'PX'),
            '--number': _number(8, 'images to average over'),
            '--images': dict(
                nargs='+',
                metavar='IMAGES',
                help='real images, cropped to their centre (default: noise)',
            ),
        },
    ),
    'features': (
        "feature maps of a model's backbone",
        {**MODEL, 'image': dict(help='image file'), '--number': _number(4, 'channels per level')},
    ),
    'curves': (
        'loss, learning rate and metric of trainings',
        {
            'work_dirs': dict(
                nargs='+', metavar='WORK_DIR', help='one or several work dirs, each with all runs'
            )
        },
    ),
    'gallery': (
        'predictions next to ground truth, the worst images first',
        {
            **MODEL,
            '--data': dict(metavar='DIR', help='folder as for tools/train.py --data'),
            '--number': _number(6, 'images drawn'),
            '--limit': dict(type=int, metavar='N', help='use the first N images (default: all)'),
            **SCORE_THR,
            **DEVICE,
        },
    ),
}
PICTURE_OUT = dict(
    metavar='FILE', help='the picture, .png, .svg or .pdf (default: work_dirs/pictures/WHAT.png)'
)


def parser_of(tool: str) -> Parser:
    """The parser of ``tools/TOOL.py``."""
    parser = Parser(*TOOLS[tool])
    if tool == 'visualize':
        commands = parser.add_subparsers(dest='what', required=True, metavar='WHAT')
        for name, (text, options) in PICTURES.items():
            options = {**options, '--out': PICTURE_OUT}
            commands.add_parser(name, help=text, options=options)
    return parser


def parse(tool: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of a tool, and act on ``--unsafe-load`` and ``--local-rank``.

    Args:
        tool (str): A key of :data:`TOOLS`.
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Returns:
        argparse.Namespace: ``cfg_options`` is a dict.
    """
    parser = parser_of(tool)
    args = parser.parse_args(argv)
    pairs = getattr(args, 'cfg_options', None) or ()
    args.cfg_options = {}
    for key, text in pairs:
        try:
            args.cfg_options[key] = read_setting(text)
        except (ValueError, AssertionError, IndexError, RecursionError) as error:
            parser.error(f'--cfg-options {key}: {text} cannot be read ({error})')
    if getattr(args, 'unsafe_load', False):
        from cyclemlp_mm.weights import allow_unsafe_loading

        allow_unsafe_loading()
    if getattr(args, 'local_rank', None) is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # as torchrun does
    return args


def read_setting(text: str) -> object:
    """Read a setting as typed: a Python literal, ``dict(…)``, or mmengine's [a,b] or a,b.

    mmengine's ``DictAction`` alone would remove spaces and has no dicts.

    Raises:
        ValueError: It starts like a dict, but is not one of literals.
    """
    is_dict = re.match(r'dict\s*\(|\{', text)
    if is_dict or text[:1] in ('(', '[') or re.fullmatch(r'(["\'])[^[(].*\1', text):
        try:
            value = _literal(ast.parse(text, mode='eval').body)
            # (64) is a tuple to mmengine.
            return (value,) if text[0] == '(' and not isinstance(value, tuple) else value
        except (SyntaxError, ValueError) as error:
            if is_dict or 'dict(' in text:
                raise ValueError(
                    f'{error}; a shell needs quotes around all of it, e.g. '
                    '"KEY=dict(type=\'Pretrained\')"'
                ) from error
    if ' ' in text and ',' not in text and text[:1] not in ('(', '['):
        return text.strip('\'"')
    from mmengine.config import DictAction

    found = argparse.Namespace()
    DictAction(['--cfg-options'], 'options')(None, found, [f'x={text}'])
    return found.options['x']


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args:
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and all(node.keys):
        return {ast.literal_eval(k): _literal(v) for k, v in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        parts = [_literal(part) for part in node.elts]
        return parts if isinstance(node, ast.List) else tuple(parts)
    return ast.literal_eval(node)
