"""CLI entry point of tools/infer.py."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.datasets.image_notes import kind_of
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import UserError, count
from cyclemlp_mm.inference import Input, Predictor, Tiling, find_inputs, predict_tiled
from cyclemlp_mm.inference.inputs import own_suffixes, read_video
from cyclemlp_mm.inference.writer import PredictionWriter

from .arguments import parse, require_boxes, style_of
from .screen import track


@dataclass
class InferReport:
    """What was done: files that were written, and input files that failed or were converted."""

    out_dir: Path
    num_images: int = 0  # images and frames that were predicted
    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)  # by file, why
    converted: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)  # by kind, each how


class _Picture(NamedTuple):
    source: Input
    image: np.ndarray
    frame: int | None = None
    fps: float = 25


def infer(argv: Sequence[str] | None = None) -> InferReport:
    """Predict images and videos; returns what was written.

    Files that cannot be read, or that the model cannot take, are named in a UserError at the end,
    when all others are done.
    """
    args = parse('infer', argv)
    style = style_of(args, not args.no_vis, 'Leave out --no-vis')
    if args.tile_overlap is not None and args.tile is None:
        raise UserError('--tile-overlap is for tiles: give --tile SIZE too')
    check_writable(args.out, '--out', is_folder=True)
    overlap = 0.2 if args.tile_overlap is None else args.tile_overlap
    tiling = None if args.tile is None else Tiling(args.tile, overlap)
    passed_over = []
    suffixes = own_suffixes(load_config(args.config, args.cfg_options))
    inputs = find_inputs(args.inputs, passed_over, suffixes)
    options = args.device, args.cfg_options, args.deploy, args.as_stored
    predictor = Predictor(args.config, args.checkpoint, *options)
    require_boxes(args, predictor.scope)
    if args.no_vis and not args.json and predictor.scope != 'mmseg':  # whose masks are written
        raise UserError('--no-vis: nothing would be written. Give --json, or leave it out')
    if tiling is not None and predictor.scope == 'mmpretrain':
        raise UserError('--tile is for detectors and segmentors; this is a classification config')
    options = style, args.json, not args.no_vis
    writer = PredictionWriter(args.out, predictor.classes, predictor.palette, *options)
    report = InferReport(Path(args.out), written=writer.written)

    def predict(images: list[np.ndarray]) -> list:
        if tiling is None:
            return predictor.predict(images, args.batch_size)
        return [predict_tiled(predictor, image, tiling, args.batch_size) for image in images]

    start = time.perf_counter()
    pictures = _pictures(inputs, predictor, report)
    total = None if any(source.is_video for source in inputs) else len(inputs)
    with track(pictures, 'Inference', total) as pictures:
        while chunk := list(islice(pictures, args.batch_size)):
            for picture, prediction in _predicted(predict, chunk, report):
                writer.add(picture.source, picture.image, prediction, picture.frame, picture.fps)
                report.num_images += 1
    writer.finish()
    _print(report, passed_over, predictor.device, time.perf_counter() - start)
    if report.failed:
        number = f'{len(report.failed)} of {len(inputs)} files could not be read or predicted'
        raise UserError('\n'.join([f'{number}, the others are done:', *report.failed.values()]))
    return report


def _pictures(inputs: list[Input], predictor: Predictor, report: InferReport) -> Iterator[_Picture]:
    """Images and frames of all files; files that cannot be read are noted."""
    for source in inputs:
        try:
            if source.is_video:
                for number, (frame, fps) in enumerate(read_video(source.path)):
                    if source.path in report.failed:  # the model takes none of its frames
                        break
                    yield _Picture(source, frame, number, fps)
            else:
                image, notes = predictor.read(source.path)
                for note in notes:
                    report.converted.setdefault(kind_of(note), []).append((source.path, note))
                yield _Picture(source, image)
        except UserError as error:
            report.failed[source.path] = str(error)


def _predicted(predict: Callable, chunk: list[_Picture], report: InferReport) -> list[tuple]:
    """(picture, prediction) of all that the model takes; the others are noted."""
    try:
        return list(zip(chunk, predict([picture.image for picture in chunk]), strict=True))
    except UserError as error:
        if len(chunk) > 1:  # one by one: the others of the chunk are fine
            return [pair for picture in chunk for pair in _predicted(predict, [picture], report)]
        path = chunk[0].source.path
        report.failed.setdefault(path, f'{path}: {error}')
        return []


def _print(report: InferReport, passed_over: list[Path], device: str, seconds: float) -> None:
    each = seconds / max(1, report.num_images)
    images = count(report.num_images, 'image')
    print(f'{images} in {seconds:.1f} s on {device} ({1000 * each:.0f} ms each)')
    for folder, what in (('vis', 'pictures'), ('masks', 'masks')):
        files = [p for p in report.written if (report.out_dir / folder) in p.parents]
        if files:
            print(f'{what:<9} {len(files)} in {report.out_dir / folder}')
    if (report.out_dir / 'predictions.json') in report.written:
        print(f'json      {report.out_dir / "predictions.json"}')
    elif (report.out_dir / 'predictions.json').exists():
        print(f'note      {report.out_dir / "predictions.json"} is of an earlier run')
    for files in report.converted.values():
        path, note = files[0]
        print(f'converted {len(files)} of {report.num_images} images, e.g. {path}: {note}')
    if passed_over:
        names = ', '.join(sorted({path.suffix.lower() or path.name for path in passed_over}))
        why = "neither images nor videos, or in sub-folders ('FOLDER/**/*' includes those)"
        print(f'skipped   {len(passed_over)} files ({names}): {why}, e.g. {passed_over[0]}')
