"""Predictions on disk: pictures, COCO-style json, masks as PNG, videos."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cyclemlp_mm.datasets.load_image import as_picture
from cyclemlp_mm.engine.atomic_files import write_atomically
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.visualization.overlay import draw_prediction, with_legend

from .inputs import Input
from .predictions import Instances, Prediction, Segments


class PredictionWriter:
    """Writes predictions as they come.

    ``vis/NAME.jpg``, ``.png`` or ``.mp4`` are the pictures; ``masks/NAME.png`` (of videos,
    ``masks/NAME/000000.png`` and so on) holds a class index per pixel, with the classes' colours as
    its palette; ``predictions.json`` is COCO's format, scores included, of all scores.

    Args:
        out_dir (str | Path): Made if it is not there; files of the same names are replaced.
        classes (Sequence[str]): Names.
        palette (Sequence[tuple]): RGB in 0..255 of each class.
        score_thr (float): Instances below are not drawn. Defaults to 0.3.
        with_json (bool): Write ``predictions.json`` at the end. Defaults to False.
        with_pictures (bool): Draw. Defaults to True.

    Raises:
        UserError: The folder or a file cannot be written, by this or any other method.
    """

    def __init__(
        self,
        out_dir: str | Path,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        score_thr: float = 0.3,
        with_json: bool = False,
        with_pictures: bool = True,
    ) -> None:
        self.out_dir = Path(out_dir)
        self.classes, self.palette = tuple(classes), list(palette)
        self.score_thr = score_thr
        self.with_json, self.with_pictures = with_json, with_pictures
        self.written = []
        self._images, self._annotations = [], []
        self._video = self._video_path = None
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f'--out {out_dir}: cannot make this folder ({error})') from error

    def add(
        self,
        source: Input,
        image: np.ndarray,
        prediction: Prediction,
        frame: int | None = None,
        fps: float = 25,
    ) -> None:
        """Write what was predicted for an image or a frame.

        Args:
            source (Input): Where it is from.
            image (np.ndarray): BGR uint8, (H, W, 3), or as the config's loading step makes it.
            prediction (Prediction): For it.
            frame (int, optional): Number of the frame; frames come in order. Defaults to None: no
                video.
            fps (float): Frames per second of the video. Defaults to 25.
        """
        name = source.name if frame is None else f'{source.name}/{frame:06d}'
        mask_file = None
        if isinstance(prediction, Segments):
            mask_file = self._write_mask(name, prediction.label_map, source)
        if self.with_json:
            self._remember(source, image, prediction, frame, mask_file)
        if self.with_pictures:
            picture = draw_prediction(
                as_picture(image), prediction, self.classes, self.palette, self.score_thr
            )
            if frame is None:
                self._write_picture(
                    source, with_legend(picture, prediction, self.classes, self.palette)
                )
            else:
                self._write_frame(source, picture, fps)

    def finish(self) -> None:
        """Close the video and write the json."""
        self._close_video()
        if self.with_json:
            self._write_json()

    def _write_picture(self, source: Input, picture: np.ndarray) -> None:
        suffix = source.path.suffix.lower()
        path = self._path('vis', f'{source.name}{suffix if suffix != ".jpeg" else ".jpg"}', source)
        if suffix not in ('.jpg', '.jpeg', '.webp'):
            path = path.with_name(f'{path.name.removesuffix(suffix)}.png')
        with _writing(path):
            Image.fromarray(picture).save(path, quality=92)
        self.written.append(path)

    def _write_frame(self, source: Input, picture: np.ndarray, fps: float) -> None:
        path = self.out_dir / 'vis' / f'{source.name}.mp4'
        if path != self._video_path:
            self._close_video()
            path = self._path('vis', f'{source.name}.mp4', source)
            self._video = _open_video(path, fps, picture.shape[:2])
            self._video_path = path
            self.written.append(path)
        self._video.write(np.ascontiguousarray(picture[..., ::-1]))

    def _close_video(self) -> None:
        if self._video is not None:
            self._video.release()
        self._video = self._video_path = None

    def _write_mask(self, name: str, label_map: np.ndarray, source: Input) -> str:
        path = self._path('masks', f'{name}.png', source)
        if label_map.dtype == np.uint8:
            mask = Image.fromarray(label_map)
            mask.putpalette([c for colour in self.palette for c in colour])
        else:
            mask = Image.fromarray(label_map.astype(np.uint16))
        with _writing(path):
            mask.save(path)
        self.written.append(path)
        return str(path.relative_to(self.out_dir))

    def _path(self, folder: str, name: str, source: Input) -> Path:
        path = self.out_dir / folder / name
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.resolve() == source.path.resolve():
            raise UserError(f'--out {self.out_dir} would overwrite {source.path}: take another one')
        return path

    def _remember(
        self,
        source: Input,
        image: np.ndarray,
        prediction: Prediction,
        frame: int | None,
        mask_file: str | None,
    ) -> None:
        image_id = len(self._images) + 1
        entry = dict(
            id=image_id, file_name=str(source.path), height=image.shape[0], width=image.shape[1]
        )
        if frame is not None:
            entry['frame'] = frame
        if mask_file is not None:
            entry['mask_file'] = mask_file
            labels, areas = np.unique(prediction.label_map, return_counts=True)
            entry['segments_info'] = [
                dict(category_id=int(label) + 1, area=int(area))
                for label, area in zip(labels, areas, strict=True)
            ]
        self._images.append(entry)
        if isinstance(prediction, Instances):
            first = len(self._annotations) + 1
            self._annotations += coco_annotations(prediction, image_id, first)

    def _write_json(self) -> None:
        path = self.out_dir / 'predictions.json'
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(self.classes)]
        content = dict(images=self._images, annotations=self._annotations, categories=categories)
        with _writing(path):  # whole or not at all, of an interrupted run too
            write_atomically(json.dumps(content).encode(), path)
        self.written.append(path)


def _open_video(path: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """A video that browsers play: VP9, or H.264 where this OpenCV has no encoder of it."""
    height, width = size
    for code in ('vp09', 'avc1', 'mp4v'):
        video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (width, height))
        if video.isOpened():
            if code == 'mp4v':
                print(
                    f'{path} is in MPEG-4, which no browser plays: this OpenCV encodes neither '
                    'VP9 nor H.264'
                )
            return video
    raise UserError(f'OpenCV cannot write the video {path}; take --no-vis')


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk's error names no file; here each does."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{path} cannot be written ({error.strerror or error}): make room or make it writable, '
            'or take another --out'
        ) from error


def coco_annotations(instances: Instances, image_id: int, first_id: int) -> list[dict]:
    """Instances as COCO's annotations; a category's id is its class index plus 1.

    Args:
        instances (Instances): Of one image.
        image_id (int): Its id.
        first_id (int): Id of the first annotation.
    """
    entries = []
    for i, (x1, y1, x2, y2) in enumerate(instances.boxes.tolist()):
        entry = dict(
            id=first_id + i,
            image_id=image_id,
            category_id=int(instances.labels[i]) + 1,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=(x2 - x1) * (y2 - y1),
            iscrowd=0,
            score=float(instances.scores[i]),
        )
        if instances.masks is not None:
            entry['segmentation'] = instances.masks[i]
        entries.append(entry)
    return entries
