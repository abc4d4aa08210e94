"""Inference: the whole of ``tools/infer.py`` but its first line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cyclemlp_mm.checks import check_score_thr, check_writable
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import UserError

from .arguments import add_cfg_options, add_deploy, add_unsafe_load, new_parser

EXAMPLES = """\
  tools/infer.py work_dirs/demo/retinanet_cyclemlp_demo.py work_dirs/demo/epoch_6.pth \\
      work_dirs/demo/data/val2017 --out found --json
  tools/infer.py fpn_cyclemlp_b1_512x512_40k_ade20k CHECKPOINT 'photos/**/*.jpg' walk.mp4
  tools/infer.py mask_rcnn_cyclemlp_b2_fpn_1x_coco CHECKPOINT aerial.tif --tile 1024
"""


@dataclass
class InferReport:
    """What was done.

    Attributes:
        out_dir (Path): Where everything was written.
        num_images (int): Images and frames that were predicted.
        written (list[Path]): The files.
        failed (dict[Path, str]): For each file that could not be read or predicted, why.
        converted (dict[str, list]): For each kind of conversion the files, with what was done.
    """

    out_dir: Path
    num_images: int = 0
    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    converted: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)


def parse_infer_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of ``tools/infer.py``."""
    parser = new_parser('Predict images and videos: boxes, masks or segments', EXAMPLES)
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='IMAGES',
        help="files, folders or globs ('a/**/*.png'), of images and videos",
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        default='work_dirs/inferred',
        help='folder for vis/, masks/ and predictions.json (default: %(default)s)',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: a GPU if there is one)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='draw instances from this score on; the json holds all (default: %(default)s)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        metavar='N',
        help='images, frames or tiles at once (default: %(default)s)',
    )
    parser.add_argument(
        '--json',
        action='store_true',
        help="write predictions.json in COCO's format: boxes, masks as run-length codes, scores; "
        'for segments, the PNG and the areas of each image',
    )
    parser.add_argument(
        '--as-stored',
        action='store_true',
        help='do not turn images as their EXIF orientation says: for results that are compared '
        'with annotations of the images as stored',
    )
    parser.add_argument('--no-vis', action='store_true', help='draw no pictures')
    parser.add_argument(
        '--tile',
        type=int,
        metavar='SIZE',
        help='cut images into overlapping tiles of SIZE x SIZE px: for images too large for the '
        'memory, or objects too small for the model',
    )
    parser.add_argument(
        '--tile-overlap',
        type=float,
        metavar='F',
        help='part of a tile that its neighbour covers too (default: 0.2)',
    )
    add_deploy(parser)
    add_cfg_options(parser)
    add_unsafe_load(parser)
    return parser.parse_args(argv)


def infer(argv: Sequence[str] | None = None) -> InferReport:
    """Predict as the command line says.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Returns:
        InferReport: What was written.

    Raises:
        UserError: With what is wrong and how to fix it. Files that cannot be read, or that the
            model cannot take, are named at the end, when all others are done.
    """
    args = parse_infer_args(argv)
    _check(args)
    # Slow to import, and not needed for --help.
    from cyclemlp_mm.inference import Predictor, Tiling, find_inputs
    from cyclemlp_mm.inference.inputs import own_suffixes
    from cyclemlp_mm.inference.writer import PredictionWriter

    tiling = None
    if args.tile is not None:
        tiling = Tiling(args.tile, 0.2 if args.tile_overlap is None else args.tile_overlap)
    passed_over = []
    suffixes = own_suffixes(load_config(args.config, args.cfg_options))
    inputs = find_inputs(args.inputs, passed_over, suffixes)
    predictor = Predictor(
        args.config, args.checkpoint, args.device, args.cfg_options, args.deploy, args.as_stored
    )
    writer = PredictionWriter(
        args.out, predictor.classes, predictor.palette, args.score_thr, args.json, not args.no_vis
    )
    report = InferReport(Path(args.out), written=writer.written)
    start = time.perf_counter()
    with _progress() as progress:
        task = progress.add_task('Inference', total=_count(inputs))
        for chunk in _chunks(_pictures(inputs, predictor, report), args.batch_size):
            done = _predict_chunk(predictor, chunk, tiling, args.batch_size, report)
            for picture, prediction in done:
                writer.add(picture.source, picture.image, prediction, picture.frame, picture.fps)
            report.num_images += len(done)
            progress.advance(task, len(chunk))
        progress.update(task, total=report.num_images, completed=report.num_images)
    writer.finish()
    _print_report(report, predictor.device, time.perf_counter() - start)
    _print_oddities(report, passed_over)
    if report.failed:
        raise UserError(
            f'{len(report.failed)} of {len(inputs)} files could not be read or predicted, the '
            'others are done:\n' + '\n'.join(report.failed.values())
        )
    return report


@dataclass
class _Picture:
    source: object
    image: np.ndarray
    frame: int | None = None
    fps: float = 25


def _check(args: argparse.Namespace) -> None:
    check_score_thr(args.score_thr)
    if args.batch_size < 1:
        raise UserError(f'--batch-size must be at least 1, but got {args.batch_size}')
    if args.tile_overlap is not None and args.tile is None:
        raise UserError('--tile-overlap says how tiles overlap: give --tile SIZE too')
    check_writable(args.out, '--out', is_folder=True)


def _pictures(inputs: Sequence, predictor: object, report: InferReport) -> Iterator[_Picture]:
    """Images and frames of all files; a file that cannot be read is noted, and the rest goes on."""
    from cyclemlp_mm.datasets.image_notes import kind_of
    from cyclemlp_mm.inference.video import Video

    for source in inputs:
        try:
            if source.is_video:
                video = Video(source.path)
                for number, frame in enumerate(video):
                    if source.path in report.failed:  # the model takes none of its frames
                        break
                    yield _Picture(source, frame, number, video.fps)
            else:
                image, unusual = predictor.read(source.path)
                for said in unusual:
                    report.converted.setdefault(kind_of(said), []).append((source.path, said))
                yield _Picture(source, image)
        except UserError as error:
            report.failed[source.path] = str(error)


def _chunks(pictures: Iterator[_Picture], size: int) -> Iterator[list[_Picture]]:
    chunk = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _predict_chunk(
    predictor: object, chunk: list[_Picture], tiling: object, batch_size: int, report: InferReport
) -> list:
    """(picture, prediction) of all that the model takes; the others are noted."""
    try:
        predictions = _predict(predictor, [p.image for p in chunk], tiling, batch_size)
    except UserError as error:
        if len(chunk) > 1:  # one by one: the others of the chunk are fine
            return [
                pair
                for picture in chunk
                for pair in _predict_chunk(predictor, [picture], tiling, batch_size, report)
            ]
        path = chunk[0].source.path
        report.failed.setdefault(path, f'{path}: {error}')
        return []
    return list(zip(chunk, predictions, strict=True))


def _predict(predictor: object, images: list, tiling: object, batch_size: int) -> list:
    from cyclemlp_mm.inference import predict_tiled

    if tiling is None:
        return predictor.predict(images, batch_size)
    return [predict_tiled(predictor, image, tiling, batch_size) for image in images]


def _count(inputs: Sequence) -> int | None:
    """Images and frames in all; None (a bar without an end) where a video does not tell."""
    from cyclemlp_mm.inference.video import Video

    total = 0
    for source in inputs:
        if source.is_video:
            try:
                frames = Video(source.path).num_frames
            except UserError:  # told when its turn comes
                continue
            if not frames:
                return None
            total += frames
        else:
            total += 1
    return total


def _progress() -> Progress:
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('elapsed'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _print_report(report: InferReport, device: str, seconds: float) -> None:
    each = seconds / max(1, report.num_images)
    print(f'{report.num_images} images in {seconds:.1f} s on {device} ({1000 * each:.0f} ms each)')
    for folder, what in (('vis', 'pictures'), ('masks', 'masks')):
        files = [p for p in report.written if (report.out_dir / folder) in p.parents]
        if files:
            print(f'{what:<9} {len(files)} in {report.out_dir / folder}')
    if (report.out_dir / 'predictions.json') in report.written:
        print(f'json      {report.out_dir / "predictions.json"}')


def _print_oddities(report: InferReport, passed_over: list[Path]) -> None:
    """What was converted before it was predicted, and what was left out."""
    for files in report.converted.values():
        path, said = files[0]
        print(f'converted {len(files)} of {report.num_images} images, e.g. {path}: {said}')
    if passed_over:
        names = ', '.join(sorted({path.suffix.lower() or path.name for path in passed_over}))
        print(
            f'left out  {len(passed_over)} files ({names}), neither images nor videos, or in '
            f"sub-folders ('FOLDER/**/*' takes those), e.g. {passed_over[0]}"
        )
