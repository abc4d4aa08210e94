"""Command lines of all tools, with OpenMMLab's names.

At the top, this module imports the standard library only: ``--help`` does not wait for torch.
"""

import argparse
import ast
import os
import re
from collections.abc import Callable, Sequence


class Parser(argparse.ArgumentParser):
    """A parser whose ``--help`` ends with examples; ``options`` are those of ``add_argument``.

    Options in ``GROUPS`` are listed under its titles.
    """

    def __init__(
        self, description: str | None = None, examples: str = '', options=None, **settings
    ) -> None:
        settings.update(formatter_class=argparse.RawDescriptionHelpFormatter)
        settings.update(epilog=f'examples:\n{examples}' if examples else None)
        super().__init__(description=description, **settings)
        titles = {name: title for title, names in GROUPS.items() for name in names}
        groups = {}
        for names, option in (options or {}).items():
            title = titles.get(names)
            if title is not None and title not in groups:
                groups[title] = self.add_argument_group(title)
            groups.get(title, self).add_argument(*names.split(), **option)


def _key_and_text(pair: str) -> tuple[str, str]:
    key, equals, text = pair.partition('=')
    if not key or not equals:
        raise argparse.ArgumentTypeError(f'{pair!r} is not KEY=VALUE')
    return key, text.strip()


def number(low: float, high: float | None = None, kind: type = int) -> Callable[[str], float]:
    """The ``type`` of an argument that takes numbers of ``kind`` from ``low`` to ``high``."""

    def read(text: str) -> float:
        value = kind(text)
        if not low <= value <= (value if high is None else high):  # nan is not
            allowed = f'at least {low:g}' if high is None else f'{low:g} to {high:g}'
            raise argparse.ArgumentTypeError(f'must be {allowed}, but got {text}')
        return value

    read.__name__ = kind.__name__  # in argparse's messages
    return read


def _flag(text: str) -> dict:
    return dict(action='store_true', help=text)


def _option(text: str, metavar: str | None = None, **settings) -> dict:
    """An argument with a value; a default gives its type, and is named in the help."""
    if settings.get('default'):
        text += ' (default: %(default)s)'
        settings.setdefault('type', type(settings['default']))
    return dict(settings, metavar=metavar, help=text)


CONFIG = {'config': _option('config file, or the name of a shipped config')}
CHECKPOINT = {'checkpoint': _option('checkpoint file')}
FORCE = {'--force': _flag('overwrite DST')}
DEVICE = {'--device': _option('cpu, cuda, cuda:1, … (default: a GPU if there is one)')}
DEPLOY = {'--deploy': _flag('fold norms and RepMLP branches after loading the weights')}
SCORE_THR = {
    '--score-thr': _option('minimum score (default: 0.3)', 'S', type=number(0, 1, kind=float))
}
#: How predictions are drawn.
STYLE = {
    '--line-width': _option(
        'width of box lines (default: by the size of the picture)', 'PX', type=number(1)
    ),
    '--hide-labels': _flag('draw neither class names nor scores'),
    '--hide-scores': _flag('draw class names without scores'),
}
SIZE = dict(nargs=2, type=number(32), metavar=('HEIGHT', 'WIDTH'))
UNSAFE_LOAD = {
    '--unsafe-load': _flag(
        'also load checkpoints that contain code; only for files from a source you trust'
    )
}


def _cfg_options(overridden: str) -> dict:
    text = f'override settings of {overridden}; quote values with brackets or spaces'
    settings = dict(nargs='+', action='extend', type=_key_and_text, metavar='KEY=VALUE')
    return {'--cfg-options': dict(settings, help=text)}


CFG_OPTIONS = _cfg_options('the config')
#: Of tools with --data.
DATA_OPTIONS = _cfg_options('the config and of --data')
PICTURE = {'--out': _option('picture (default: work_dirs/pictures/WHAT.png)', 'FILE')}
MODEL = {**CONFIG, **CHECKPOINT, **UNSAFE_LOAD, **CFG_OPTIONS}
#: Tests of one model, one after the other.
SERIES = {
    '--sizes': _option('test a classifier at these image sizes', 'PX', nargs='+', type=int),
    '--corruptions': _option(
        "also test on corrupted images (default: ImageNet-C's 15 kinds)", 'NAME', nargs='*'
    ),
    '--corrupted-data': _option(
        "for --corruptions of a classifier: images in ImageNet-C's layout", 'DIR'
    ),
    '--reference': _option(
        'for --corruptions of a classifier: alexnet or a corruptions.json, to compare with', 'FILE'
    ),
}
#: Of tools that train or evaluate on a folder of the user's.
LABELLED = {
    '--data': _option(
        "your own data: COCO files, ADE20K's or CamVid's layout, or a folder per class", 'DIR'
    ),
    '--classes': _option(
        'for --data: class names, in the order of labels (default: classes.txt), or a selection of '
        'the annotated classes',
        metavar='NAME',
        nargs='+',
    ),
    '--ignore-label': _option(
        'for --data: class ids start at 0 and K means ignore (default: ids start at 1 and 0 means '
        'ignore)',
        'K',
        type=int,
    ),
}
#: Of tools that make a run: work dir, data and processes.
RUN = {
    '--work-dir': _option('folder for logs and checkpoints (default: work_dirs/NAME-OF-CONFIG)'),
    **DATA_OPTIONS,
    **UNSAFE_LOAD,
    **LABELLED,
    '--launcher': _option(
        'distributed launcher', default='none', choices=['none', 'pytorch', 'slurm', 'mpi']
    ),
    # Older launchers pass it.
    '--local_rank --local-rank': dict(type=int, help=argparse.SUPPRESS),
}
#: By title in ``--help``: options.
GROUPS = {
    'your own data': ['--data', '--classes', '--ignore-label'],
    'pictures': ['--show-dir', '--no-vis', *STYLE],
    'several tests of one model': list(SERIES),
}
BACKENDS = ['tensorboard', 'wandb', 'mlflow', 'clearml', 'neptune', 'dvclive', 'aim']
PARTS = ['backbone', 'neck', 'model']

#: By tool: what it does, and examples.
TEXTS = """
train: Train a detector, segmentor or classifier
  tools/train.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --data my_cells --auto-scale-lr
  tools/train.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py --data my_rooms --auto-scale-lr
  tools/train.py configs/mask_rcnn_cyclemlp_b1_fpn_1x_coco.py --resume --vis tensorboard
test: Evaluate a checkpoint
  tools/test.py work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth
  tools/test.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py CHECKPOINT --show-dir drawn
  tools/test.py configs/cyclemlp_b1_in1k.py CHECKPOINT --corruptions --reference alexnet
  tools/test.py configs/upernet_cyclemlp_b2_512x512_160k_ade20k.py CHECKPOINT --tta
check: Look for problems with data, config and machine, without training
  tools/check.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --data my_cells
  tools/check.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py --data my_streets --full
infer: Predict images and videos: boxes, masks, segments or categories
  tools/infer.py work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth photos/ --out found
  tools/infer.py fpn_cyclemlp_b1_512x512_40k_ade20k CHECKPOINT 'photos/**/*.jpg' walk.mp4
  tools/infer.py mask_rcnn_cyclemlp_b2_fpn_1x_coco CHECKPOINT aerial.tif --tile 1024 --json
export: Write a model as ONNX or torch.export file, checked against PyTorch
  tools/export.py work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth model.onnx
  tools/export.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py CHECKPOINT fpn.onnx
  tools/export.py configs/cyclemlp_b1_in1k.py CycleMLP_B1.pth b1.pt2 --part backbone
  tools/export.py mask_rcnn_cyclemlp_b1_fpn_1x_coco CHECKPOINT detector.onnx --part model
  tools/export.py work_dirs/RUN/CONFIG.py CHECKPOINT fpn8.onnx --quantize int8 --calibrate photos
convert_weights: Convert any CycleMLP checkpoint: published, Paddle, safetensors or our own files
  tools/convert_weights.py CycleMLP_B1.pth b1.safetensors
  tools/convert_weights.py cyclemlp_b1.pdparams CycleMLP_B1.pth --to published
  tools/convert_weights.py work_dirs/RUN/epoch_12.pth detector.pth      # without optimiser state
get_flops: Count the parameters of a backbone or model, and the multiply-adds of one image
  tools/get_flops.py --arch b2 --size 800 1280
  tools/get_flops.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py --json
estimate: Estimate the GPU memory of a training step, without a GPU
  tools/estimate.py mask_rcnn_cyclemlp_b2_fpn_1x_coco --amp --with-cp
  tools/estimate.py upernet_cyclemlp_b5_512x512_160k_ade20k --gpu-memory 24
visualize: Draw what a model does and how its training went
  tools/visualize.py staircase 3 5 7 --out staircase.png
  tools/visualize.py field cyclemlp_b1_in1k --weights CycleMLP_B1.pth --out field.png
  tools/visualize.py features work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth photo.jpg
  tools/visualize.py curves work_dirs/RUN work_dirs/OTHER_RUN --out curves.png
  tools/visualize.py gallery work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth --number 6
staircase: sampling pattern of a CycleFC with k taps
field: effective receptive field of each level, compared with ResNet-50
features: feature maps of a model's backbone
curves: loss, learning rate and metric of trainings
gallery: predictions next to ground truth, the worst images first
web: Serve a web page that predicts the images dropped on it
  tools/web.py                                  # the model of `make demo`, all others to choose
  tools/web.py --model work_dirs/RUN/CONFIG.py work_dirs/RUN/epoch_12.pth --port 8000
"""
#: By tool: its arguments.
OPTIONS = {
    'train': {
        **CONFIG,
        '--amp': _flag('automatic mixed precision: float16 on a GPU, bfloat16 on a CPU'),
        '--auto-scale-lr': _flag('scale the learning rate by the actual batch size'),
        '--resume': _option(
            'resume from PATH, or from the latest checkpoint', 'PATH', nargs='?', const='auto'
        ),
        '--skip-check': _flag('skip the check before training (see tools/check.py)'),
        '--vis': _option(
            f'also log to: {", ".join(BACKENDS)}', 'NAME', nargs='+', choices=BACKENDS, default=[]
        ),
        **RUN,
    },
    'test': {
        **CONFIG,
        **CHECKPOINT,
        '--out': _option('write the predictions to a file', 'FILE.pkl'),
        '--show-dir': _option('draw predictions next to ground truth', 'DIR'),
        '--tta': _flag("test-time augmentation: the config's scales and flips, merged"),
        **STYLE,
        **DEPLOY,
        **SERIES,
        **RUN,
    },
    'check': {**CONFIG, '--full': _flag('check all images and labels, not a sample'), **RUN},
    'infer': {
        **MODEL,
        'inputs': _option("images, videos, folders and globs ('a/**/*.png')", 'IMAGES', nargs='+'),
        '--out': _option('folder for the results', 'DIR', default='work_dirs/inferred'),
        **DEVICE,
        **SCORE_THR,
        **DEPLOY,
        '--batch-size': _option('images, frames or tiles at once', 'N', default=1, type=number(1)),
        '--json': _flag(
            "write predictions.json: boxes and masks in COCO's format, scores of a classifier, or "
            'class ids and areas of segments'
        ),
        '--as-stored': _flag('ignore EXIF orientation, to compare with annotations'),
        '--no-vis': _flag('draw no pictures'),
        **STYLE,
        '--tile': _option('cut large images into tiles of SIZE x SIZE px', 'SIZE', type=number(64)),
        '--tile-overlap': _option(
            'fraction that two tiles share (default: 0.2)', 'F', type=number(0, 0.9, kind=float)
        ),
    },
    'export': {
        **CONFIG,
        'checkpoint': _option('checkpoint file; for --part backbone, a published file too'),
        'dst': _option('file to write, .onnx or .pt2', 'DST'),
        '--part': _option('default: neck for detectors, else model', choices=PARTS),
        '--time': dict(SIZE, type=int, help='also measure the latency of one image on the CPU'),
        '--opset': _option(
            'opset of an .onnx file, 11 to 20 (default: 20)', 'N', type=int, choices=range(11, 21)
        ),
        '--constant-weights': _flag(
            'keep the weight of each matrix product constant (for quantisation tools)'
        ),
        '--quantize': _option(
            'also convert the .onnx file to 8-bit integers; needs --calibrate', choices=['int8']
        ),
        '--calibrate': _option(
            'for --quantize: images like those to be predicted, at most 100 are used', 'DIR'
        ),
        **LABELLED,
        **FORCE,
        **UNSAFE_LOAD,
        **DEPLOY,
        **DATA_OPTIONS,
    },
    'convert_weights': {
        'source': _option('file or http(s) URL', 'SRC'),
        'target': _option('new file', 'DST'),
        '--to': _option(
            'format (default: safetensors if DST ends in .safetensors, else ours)',
            choices=['ours', 'published', 'safetensors'],
        ),
        **FORCE,
        **UNSAFE_LOAD,
    },
    'get_flops': {
        'config': dict(CONFIG['config'], nargs='?'),
        '--arch': _option('a CycleMLP backbone alone, instead of CONFIG', 'NAME'),
        '--size': dict(SIZE, help='default: 224 224, detectors 800 1280, segmentors 512 512'),
        '--json': _flag('print the exact counts as json'),
        **CFG_OPTIONS,
    },
    'estimate': {
        **CONFIG,
        '--batch-size': _option("images per GPU (default: the config's)", 'N', type=number(1)),
        '--size': dict(SIZE, help="of the images (default: the largest of the config's pipeline)"),
        '--amp': _flag('automatic mixed precision'),
        '--with-cp': _flag('activation checkpointing of the backbone'),
        '--gpu-memory': _option(
            'also find the largest batch that fits into GIB',
            'GIB',
            type=number(0.001, 10000, kind=float),
        ),
        '--device': _option('device of the training', default='cuda', choices=['cuda', 'cpu']),
        **CFG_OPTIONS,
    },
    'visualize': {},
    'web': {
        '--model': dict(
            nargs=2,
            action='append',
            default=[],
            metavar=('CONFIG', 'CHECKPOINT'),
            help='offer this model; may be repeated, and the first one is selected',
        ),
        '--work-dirs': _option(
            'folder of work dirs whose models are offered', 'DIR', default='work_dirs'
        ),
        **UNSAFE_LOAD,
        **DEVICE,
        '--host': _option(
            'address to listen on; 0.0.0.0 lets other machines in, without a password',
            'ADDRESS',
            default='127.0.0.1',
        ),
        '--allow-host': _option(
            'also answer requests for this host name; may be repeated',
            'NAME',
            action='append',
            default=[],
        ),
        '--port': _option('port', default=7860, type=number(1, 65535)),
        '--max-mb': _option(
            'largest accepted file', 'MB', default=20.0, type=number(0.001, kind=float)
        ),
    },
    # Sub-commands of tools/visualize.py.
    'staircase': {
        'taps': _option('numbers of taps, odd (default: 3 5 7)', 'K', nargs='*', type=int),
        '--config': _option("take the taps of this config's backbone", 'CONFIG'),
        **CFG_OPTIONS,
        **PICTURE,
    },
    'field': {
        **CONFIG,
        **UNSAFE_LOAD,
        **CFG_OPTIONS,
        '--weights': _option('weights of the backbone (default: random)', 'FILE'),
        '--resnet-weights': _option("torchvision's ResNet-50 (default: random)", 'FILE'),
        '--size': _option('side of the images', 'PX', default=224, type=number(64)),
        '--number': _option('images to average over', 'N', default=8, type=number(1)),
        '--images': _option('images, cropped (default: noise)', 'IMAGES', nargs='+'),
        **PICTURE,
    },
    'features': {
        **MODEL,
        'image': _option('image file'),
        '--number': _option('channels per level', 'N', default=4, type=number(1)),
        **PICTURE,
    },
    'curves': {
        'work_dirs': _option('work dirs; a resumed training shows its runs', 'WORK_DIR', nargs='+'),
        **PICTURE,
    },
    'gallery': {
        **MODEL,
        **DATA_OPTIONS,
        '--data': _option('folder as for tools/train.py --data', 'DIR'),
        '--number': _option('images drawn', 'N', default=6, type=number(1, 12)),
        '--limit': _option('use the first N images (default: all)', 'N', type=number(1)),
        **SCORE_THR,
        **STYLE,
        **DEVICE,
        **PICTURE,
    },
}


def parser_of(tool: str) -> Parser:
    """The parser of ``tools/TOOL.py``."""
    texts = {
        name: (text, more) for name, text, more in re.findall(r'(\w+): (.*)\n((?:  .*\n)*)', TEXTS)
    }
    parser = Parser(*texts[tool], OPTIONS[tool])
    if tool == 'visualize':
        commands = parser.add_subparsers(dest='what', required=True, metavar='WHAT')
        for name in ('staircase', 'field', 'features', 'curves', 'gallery'):
            what, lines = texts[name][0], texts[tool][1].splitlines()
            examples = '\n'.join(line for line in lines if f'visualize.py {name} ' in line)
            about = dict(description=f'Draw the {what}', help=what)
            commands.add_parser(name, examples=examples, options=OPTIONS[name], **about)
    return parser


def parse(tool: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line of a tool, by default the process's own; ``cfg_options`` is a dict.

    Acts on ``--unsafe-load`` and ``--local-rank``.
    """
    parser = parser_of(tool)
    args = parser.parse_args(argv)
    options = {}
    for key, text in getattr(args, 'cfg_options', None) or ():
        try:
            options[key] = read_setting(text)
        except (ValueError, AssertionError, IndexError, RecursionError) as error:
            parser.error(f'--cfg-options {key}: {text} cannot be read ({error})')
    args.cfg_options = options
    if getattr(args, 'unsafe_load', False):
        from cyclemlp_mm.weights import allow_unsafe_loading

        allow_unsafe_loading()
    if getattr(args, 'local_rank', None) is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # as torchrun does
    return args


def style_of(args: argparse.Namespace, draws: bool = True, how: str = ''):
    """How a tool draws; where nothing is drawn, a UserError that says ``how`` to draw."""
    from cyclemlp_mm.errors import UserError
    from cyclemlp_mm.visualization.overlay import Style

    given = [name for name in STYLE if getattr(args, name[2:].replace('-', '_'))]
    if given and not draws:
        raise UserError(f'{", ".join(given)}: nothing is drawn. {how}')
    score_thr = getattr(args, 'score_thr', None)
    style = Style(
        line_width=args.line_width, hide_labels=args.hide_labels, hide_scores=args.hide_scores
    )
    style.score_thr = style.score_thr if score_thr is None else score_thr
    return style


def require_boxes(args: argparse.Namespace, scope: str) -> None:
    """Raise a UserError for options about boxes where a model of mmseg or mmpretrain finds none."""
    from cyclemlp_mm.errors import UserError

    given = [n for n in ('score_thr', 'line_width') if getattr(args, n, None) is not None]
    if given and scope != 'mmdet':
        options = ', '.join(f'--{name.replace("_", "-")}' for name in given)
        raise UserError(f'{options} is for boxes, which no model of {scope} predicts: leave it out')


def read_setting(text: str) -> object:
    """Read a setting as typed: a Python literal, ``dict(…)``, or mmengine's [a,b] or a,b.

    mmengine's ``DictAction`` alone would remove spaces and has no dicts. Raises a ValueError for a
    text that starts like a dict, but is not one of literals.
    """
    is_dict = re.match(r'dict\s*\(|\{', text)
    if is_dict or text[:1] in ('(', '[') or re.fullmatch(r'(["\'])[^[(].*\1', text):
        try:
            value = _literal(ast.parse(text, mode='eval').body)
            # (64) is a tuple to mmengine.
            return (value,) if text[0] == '(' and not isinstance(value, tuple) else value
        except (SyntaxError, ValueError) as error:
            if is_dict or 'dict(' in text:
                raise ValueError(f'{error}; put it in quotes: "KEY=dict(type=\'X\')"') from error
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
