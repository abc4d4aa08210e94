"""Predictions on disk: pictures, COCO-style json, masks as PNG, videos."""

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
from cyclemlp_mm.visualization.overlay import Style, draw_prediction, with_legend

from .inputs import Input
from .predictions import Categories, Prediction, Segments


class PredictionWriter:
    """Writes predictions as they come.

    ``vis/NAME.jpg``, ``.png`` or ``.mp4`` are the pictures; ``masks/NAME.png`` (of videos,
    ``masks/NAME/000000.png`` and so on) holds a class index per pixel, with the classes' colours as
    its palette; ``predictions.json`` is COCO's format, with scores, of all scores. Files of these
    names are replaced; an image or video that would be is a UserError.
    """

    def __init__(
        self,
        out_dir: str | Path,
        classes: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        style: Style = Style(),  # noqa: B008 (is not changed)
        with_json: bool = False,
        with_pictures: bool = True,
    ) -> None:
        self.out_dir, self.written = Path(out_dir), []
        self.classes, self.palette, self.style = tuple(classes), list(palette), style
        self.with_json, self.with_pictures = with_json, with_pictures
        self._images, self._annotations = [], []
        self._video = self._video_source = None
        self.out_dir.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        source: Input,
        image: np.ndarray,
        prediction: Prediction,
        frame: int | None = None,
        fps: float = 25,
    ) -> None:
        """Write what was predicted for an image, or for a frame of a video with so many fps."""
        entry = dict(file_name=str(source.path), height=image.shape[0], width=image.shape[1])
        if frame is not None:
            entry['frame'] = frame
        if isinstance(prediction, Segments):
            name = source.name if frame is None else f'{source.name}/{frame:06d}'
            entry['mask_file'] = f'masks/{name}.png'
            labels, is_small = prediction.label_map, prediction.label_map.dtype == np.uint8
            mask = Image.fromarray(labels if is_small else labels.astype(np.uint16))
            if is_small:
                mask.putpalette([c for colour in self.palette for c in colour])
            with self._new_file(entry['mask_file'], source) as path:
                mask.save(path)
        if self.with_json:
            self._add_to_json(entry, prediction)
        if not self.with_pictures:
            return
        colours = self.classes, self.palette
        picture = draw_prediction(as_picture(image), prediction, *colours, self.style)
        if frame is not None:
            height, width = (side // 2 * 2 for side in picture.shape[:2])  # H.264 has no odd sides
            picture = picture[:height, :width]
            if source != self._video_source:
                self._close_video()
                with self._new_file(f'vis/{source.name}.mp4', source) as path:
                    self._video = _open_video(path, fps, picture.shape[1::-1])
                self._video_source = source
            self._video.write(np.ascontiguousarray(picture[..., ::-1]))
            return
        suffix = source.path.suffix.lower().replace('.jpeg', '.jpg')
        suffix = suffix if suffix in ('.jpg', '.webp') else '.png'
        with self._new_file(f'vis/{source.name}{suffix}', source) as path:
            Image.fromarray(with_legend(picture, prediction, *colours)).save(path, quality=92)

    def finish(self) -> None:
        """Close the video and write the json."""
        self._close_video()
        if self.with_json:
            categories = [dict(id=i, name=name) for i, name in enumerate(self.classes, 1)]
            content = dict(images=self._images, annotations=self._annotations)
            content['categories'] = categories
            with self._new_file('predictions.json') as path:
                write_atomically(json.dumps(content).encode(), path)

    @contextmanager
    def _new_file(self, name: str, source: Input | None = None) -> Iterator[Path]:
        path = self.out_dir / name
        if source is not None and path.resolve() == source.path.resolve():
            raise UserError(f'--out {self.out_dir} would overwrite {source.path}: use another one')
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        self.written.append(path)

    def _add_to_json(self, entry: dict, prediction: Prediction) -> None:
        """Add an image and its annotations. Category ids start at 1."""
        entry['id'] = len(self._images) + 1
        self._images.append(entry)
        if isinstance(prediction, Categories):
            entry['scores'] = prediction.scores.tolist()
            return
        if isinstance(prediction, Segments):
            labels, areas = np.unique(prediction.label_map, return_counts=True)
            entry['segments_info'] = [
                dict(category_id=label + 1, area=area)
                for label, area in zip(labels.tolist(), areas.tolist())
            ]
            return
        for i, (x1, y1, x2, y2) in enumerate(prediction.boxes.tolist()):
            annotation = dict(id=len(self._annotations) + 1, image_id=entry['id'], iscrowd=0)
            annotation |= dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
            annotation['category_id'] = int(prediction.labels[i]) + 1
            annotation['score'] = float(prediction.scores[i])
            if prediction.masks is not None:
                annotation['segmentation'] = prediction.masks[i]
            self._annotations.append(annotation)

    def _close_video(self) -> None:
        if self._video is not None:
            self._video.release()
        self._video = self._video_source = None


def _open_video(path: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """A video that browsers play: VP9, or H.264 where this OpenCV has no encoder of it."""
    for code in ('vp09', 'avc1', 'mp4v'):
        video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, size)
        if video.isOpened():
            if code == 'mp4v':
                print(f'{path} is in MPEG-4, which no browser plays: OpenCV has no VP9 or H.264')
            return video
    raise UserError(f'OpenCV cannot write the video {path}: use --no-vis')
