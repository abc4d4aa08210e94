"""What the page does behind its buttons: loads models, predicts once, redraws at will."""

from __future__ import annotations

import html
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyclemlp_mm.errors import MissingFileError
from cyclemlp_mm.inference import Predictor, Segments, Tiling, predict_tiled
from cyclemlp_mm.inference.predictions import Prediction
from cyclemlp_mm.visualization.overlay import draw_prediction, fit

from .catalogue import ModelChoice

#: Longer side of a drawn picture, in pixels.
SHOWN_SIDE = 800
#: A segmentor takes larger images in tiles: it does not resize them, and memory would grow.
TILE_FROM_PIXELS, TILING = 2048 * 2048, Tiling(1024)


@dataclass
class Answer:
    """A prediction with all that is needed to draw it again.

    Attributes:
        image (np.ndarray): RGB uint8, in the size in which it is shown.
        prediction (Prediction): In its pixels.
        classes (tuple[str]): Names.
        palette (list[tuple]): RGB of each class.
        seconds (float): How long the prediction took, loading the model left out.
        device (str): Where.
        size (tuple[int, int]): Width and height of the uploaded image.
    """

    image: np.ndarray
    prediction: Prediction
    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]
    seconds: float
    device: str
    size: tuple[int, int]

    def draw(self, score_thr: float) -> np.ndarray:
        """RGB uint8: the picture with all instances from this score on; the model does not run."""
        return draw_prediction(self.image, self.prediction, self.classes, self.palette, score_thr)

    def describe(self, score_thr: float) -> str:
        """HTML: time, size, and the classes that are drawn, with their colours."""
        width, height = self.size
        facts = f'{1000 * self.seconds:.0f} ms on {self.device} · {width}×{height} px'
        if isinstance(self.prediction, Segments):
            labels, counts = np.unique(self.prediction.label_map, return_counts=True)
            shares = {int(c): f'{n / counts.sum():.0%}' for c, n in zip(labels, counts)}
        else:
            shown = self.prediction.above(score_thr)
            labels, counts = np.unique(shown.labels, return_counts=True)
            shares = {int(c): str(n) for c, n in zip(labels, counts)}
            facts += f' · {len(shown)} of {len(self.prediction)} objects'
        legend = ''.join(
            f'<span class="swatch" style="background:rgb{tuple(self.palette[label])}"></span>'
            f'{html.escape(self.classes[label])} ({share}) '
            for label, share in shares.items()
            if label < len(self.classes)
        )
        return f'<p class="facts">{html.escape(facts)}</p><p class="legend">{legend}</p>'


class Workbench:
    """Models by name; the last ones used stay loaded.

    Args:
        models (Sequence[ModelChoice]): What there is.
        device (str, optional): See :class:`cyclemlp_mm.inference.Predictor`.
        max_loaded (int): Models kept in memory. Defaults to 3.
    """

    def __init__(
        self, models: Sequence[ModelChoice], device: str | None = None, max_loaded: int = 3
    ) -> None:
        self.models = {model.name: model for model in models}
        self.device = device
        self.max_loaded = max_loaded
        self._loaded = OrderedDict()
        self._lock = threading.Lock()  # one at a time: they share the processor anyway

    def model(self, name: str) -> ModelChoice:
        """The model of that name.

        Raises:
            MissingFileError: There is none; a page that was open before a restart may ask for it.
        """
        if name not in self.models:
            raise MissingFileError(f'there is no model {name!r} here: reload the page')
        return self.models[name]

    def predict(self, name: str, checkpoint: str, image: np.ndarray) -> Answer:
        """Predict an image.

        Args:
            name (str): Of the model.
            checkpoint (str): File name of one of its checkpoints.
            image (np.ndarray): BGR uint8, (H, W, 3).

        Raises:
            UserError: Model or checkpoint is not there or does not load.
        """
        with self._lock:
            predictor = self._load(self.model(name), checkpoint)
            start = time.perf_counter()
            if predictor.is_segmentor and image.shape[0] * image.shape[1] > TILE_FROM_PIXELS:
                prediction = predict_tiled(predictor, image, TILING)
            else:
                [prediction] = predictor.predict([image])
            seconds = time.perf_counter() - start
        shown, prediction = fit(image[..., ::-1], prediction, SHOWN_SIDE)
        return Answer(
            shown,
            prediction,
            predictor.classes,
            predictor.palette,
            seconds,
            predictor.device,
            (image.shape[1], image.shape[0]),
        )

    def _load(self, model: ModelChoice, checkpoint: str) -> Predictor:
        path = model.checkpoint(checkpoint)
        # The time too: a training that goes on writes new weights under the old name.
        key = str(model.config), str(path), path.stat().st_mtime_ns
        if key not in self._loaded:
            self._loaded[key] = Predictor(model.config, path, self.device)
            while len(self._loaded) > self.max_loaded:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key]
