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
from cyclemlp_mm.engine.work_dir import write_atomically
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.visualization.overlay import draw_prediction, with_legend

from .inputs import Input
from .predictions import Prediction, Segments


class PredictionWriter:
    """Writes predictions as they come.

    ``vis/NAME.jpg``, ``.png`` or ``.mp4`` are the pictures; ``masks/NAME.png`` (of videos,
    ``masks/NAME/000000.png`` and so on) holds a class index per pixel, with the classes' colours as
    its palette; ``predictions.json`` is COCO's format, with scores, of all scores.

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
        self._video = self._video_source = None
        with _writing(self.out_dir):
            self.out_dir.mkdir(parents=True, exist_ok=True)

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
        mask_file = None
        if isinstance(prediction, Segments):
            name = source.name if frame is None else f'{source.name}/{frame:06d}'
            mask_file = self._write_mask(name, prediction.label_map, source)
        if self.with_json:
            self._images.append(self._json_entry(source, image, prediction, frame, mask_file))
        if not self.with_pictures:
            return
        colours = self.classes, self.palette
        picture = draw_prediction(as_picture(image), prediction, *colours, self.score_thr)
        if frame is not None:
            self._write_frame(source, picture, fps)
            return
        suffix = source.path.suffix.lower().replace('.jpeg', '.jpg')
        suffix = suffix if suffix in ('.jpg', '.webp') else '.png'
        with self._new_file(f'vis/{source.name}{suffix}', source) as path:
            Image.fromarray(with_legend(picture, prediction, *colours)).save(path, quality=92)

    def finish(self) -> None:
        """Close the video and write the json."""
        self._close_video()
        if self.with_json:
            content = dict(
                images=self._images,
                annotations=self._annotations,
                categories=[dict(id=i, name=name) for i, name in enumerate(self.classes, 1)],
            )
            with self._new_file('predictions.json') as path:
                write_atomically(json.dumps(content).encode(), path)

    @contextmanager
    def _new_file(self, name: str, source: Input | None = None) -> Iterator[Path]:
        path = self.out_dir / name
        if source is not None and path.resolve() == source.path.resolve():
            raise UserError(f'--out {self.out_dir} would overwrite {source.path}: use another one')
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        self.written.append(path)

    def _json_entry(
        self,
        source: Input,
        image: np.ndarray,
        prediction: Prediction,
        frame: int | None,
        mask_file: str | None,
    ) -> dict:
        """The image's; its annotations are added to the others. Category ids start at 1."""
        entry = dict(id=len(self._images) + 1, file_name=str(source.path))
        entry['height'], entry['width'] = image.shape[:2]
        if frame is not None:
            entry['frame'] = frame
        if isinstance(prediction, Segments):
            labels, areas = np.unique(prediction.label_map, return_counts=True)
            entry['mask_file'] = mask_file
            entry['segments_info'] = [
                dict(category_id=label + 1, area=area)
                for label, area in zip(labels.tolist(), areas.tolist())
            ]
            return entry
        for i, (x1, y1, x2, y2) in enumerate(prediction.boxes.tolist()):
            annotation = dict(
                id=len(self._annotations) + 1,
                image_id=entry['id'],
                category_id=int(prediction.labels[i]) + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=0,
                score=float(prediction.scores[i]),
            )
            if prediction.masks is not None:
                annotation['segmentation'] = prediction.masks[i]
            self._annotations.append(annotation)
        return entry

    def _write_mask(self, name: str, label_map: np.ndarray, source: Input) -> str:
        with self._new_file(f'masks/{name}.png', source) as path:
            if label_map.dtype == np.uint8:
                mask = Image.fromarray(label_map)
                mask.putpalette([c for colour in self.palette for c in colour])
            else:
                mask = Image.fromarray(label_map.astype(np.uint16))
            mask.save(path)
        return f'masks/{name}.png'

    def _write_frame(self, source: Input, picture: np.ndarray, fps: float) -> None:
        if source != self._video_source:
            self._close_video()
            with self._new_file(f'vis/{source.name}.mp4', source) as path:
                self._video = _open_video(path, fps, picture.shape[1::-1])
            self._video_source = source
        self._video.write(np.ascontiguousarray(picture[..., ::-1]))

    def _close_video(self) -> None:
        if self._video is not None:
            self._video.release()
        self._video = self._video_source = None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk's error names no file; here each does."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{path} cannot be written ({error.strerror or error}): make room or make it writable, '
            'or use another --out'
        ) from error


def _open_video(path: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """A video that browsers play: VP9, or H.264 where this OpenCV has no encoder of it."""
    for code in ('vp09', 'avc1', 'mp4v'):
        video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, size)
        if video.isOpened():
            if code == 'mp4v':
                print(
                    f'{path} is in MPEG-4, which no browser plays: this OpenCV encodes neither '
                    'VP9 nor H.264'
                )
            return video
    raise UserError(f'OpenCV cannot write the video {path}: use --no-vis')
