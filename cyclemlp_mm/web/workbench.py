"""What the page's buttons do: find and load models, predict once, draw again."""

import html
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyclemlp_mm.engine import find_config
from cyclemlp_mm.errors import MissingFileError
from cyclemlp_mm.inference import Categories, Predictor, Segments, Tiling, predict_tiled
from cyclemlp_mm.inference.predictions import Prediction
from cyclemlp_mm.user_path import user_path
from cyclemlp_mm.visualization.overlay import Style, draw_prediction, fit

#: A segmentor takes larger images in tiles: it does not resize them, and memory would grow.
TILE_FROM_PIXELS, TILING = 2048 * 2048, Tiling(1024)


@dataclass(frozen=True)
class ModelChoice:
    """A model's name on the page, its config, and its checkpoints, the default one first."""

    name: str
    config: Path
    checkpoints: tuple[Path, ...]


def find_models(work_dirs: str | Path, named: Sequence[tuple[str, str]] = ()) -> list[ModelChoice]:
    """Find all trained models; the page offers only these, as a config is a program.

    Args:
        work_dirs (str | Path): Its folders, and theirs, may have a config next to checkpoints.
        named (Sequence[tuple[str, str]]): More, as config (path or name) and checkpoint.

    Returns:
        list[ModelChoice]: Those named, the model of ``make demo``, then the others by name; a
        MissingFileError is raised if there is none, or one that is named is not there.
    """
    found = []
    for config, checkpoint in named:
        path = user_path(checkpoint)
        if not path.is_file():
            raise MissingFileError(f'checkpoint {checkpoint} does not exist')
        name = f'{Path(config).stem} ({path.absolute().parent.name}/{path.name})'
        same = sum(model.name.startswith(name) for model in found)
        name += f' {same + 1}' if same else ''
        found.append(ModelChoice(name, find_config(config), (path,)))
    root = Path(work_dirs)
    folders = [path for depth in ('*', '*/*') for path in root.glob(depth) if path.is_dir()]
    for folder in sorted(folders, key=lambda path: ('demo' not in path.parts, path)):
        checkpoints = _checkpoints(folder)
        for config in sorted(folder.glob('*.py')) if checkpoints else ():
            # Not run: it may be any program, and only a training writes this line.
            text = config.read_text(encoding='utf-8', errors='replace') if config.is_file() else ''
            if re.search(r"^default_scope = '(mmdet|mmseg|mmpretrain)'", text, re.MULTILINE):
                name = folder.relative_to(root).as_posix()
                found.append(ModelChoice(f'{name}: {config.stem}', config, checkpoints))
    if not found:
        fix = 'run `make demo` first, or give --model CONFIG CHECKPOINT'
        raise MissingFileError(f'no trained model in {root}: {fix}')
    return found


def _checkpoints(folder: Path) -> tuple[Path, ...]:
    """The last one first, then the best, then the others, newest first."""
    last = folder / 'last_checkpoint'
    last_name = Path(last.read_text(errors='replace').strip()).name if last.is_file() else ''

    def rank(path: Path) -> tuple:
        number = int((re.findall(r'\d+', path.stem) or ['0'])[-1])
        return path.name != last_name, not path.name.startswith('best'), -number, path.name

    # Hidden ones are being written.
    return tuple(sorted((p for p in folder.glob('*.pth') if p.name[0] != '.'), key=rank))


@dataclass
class Answer:
    """A prediction with all that is needed to draw it again.

    ``image`` is RGB uint8 as shown, ``prediction`` in its pixels, ``size`` is width and height of
    the upload, ``seconds`` is without loading the model.
    """

    image: np.ndarray
    prediction: Prediction
    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]
    seconds: float
    device: str
    size: tuple[int, int]

    def draw(self, style: Style) -> np.ndarray:
        """Draw all instances from its score on, RGB uint8; the model does not run."""
        return draw_prediction(self.image, self.prediction, self.classes, self.palette, style)

    def describe(self, score_thr: float) -> str:
        """HTML: time, size, and the classes that are drawn, with their colours, or why none is."""
        width, height = self.size
        facts = f'{1000 * self.seconds:.0f} ms on {self.device} · {width}×{height} px'
        found, legend = self.prediction, ''
        if isinstance(found, Categories):
            shown = {label: f'{found.scores[label]:.2f}' for label in found.best(5)}
        elif isinstance(found, Segments):
            counts = zip(*np.unique(found.label_map, return_counts=True), strict=True)
            shown = {label: f'{n / found.label_map.size:.0%}' for label, n in counts}
        else:
            drawn = found.above(score_thr)
            shown = dict(zip(*np.unique(drawn.labels, return_counts=True), strict=True))
            facts += f' · {len(drawn)} of {len(found)} objects'
            if not len(drawn):
                legend = f'Nothing found. {knows(self.classes)} '
                legend += 'No object was predicted at any score.'
            if len(found) and not len(drawn):
                best = found.scores.argmax()
                name = self.classes[found.labels[best]]
                legend = f'Nothing found. {knows(self.classes)} The best score, '
                legend += f'{found.scores[best]:.2f} ({name}), is below the minimum {score_thr:g}.'
        legend = html.escape(legend) + ''.join(
            f'<span class="swatch" style="background:rgb{tuple(self.palette[label])}"></span>'
            f'{html.escape(self.classes[label])} ({value}) '
            for label, value in shown.items()
            if label < len(self.classes)
        )
        return f'<p class="facts">{html.escape(facts)}</p><p class="legend">{legend}</p>'


def knows(classes: Sequence[str], most: int = 12) -> str:
    """What a model can find, in a sentence with at most so many names."""
    names = ', '.join(classes[:most]) + (', …' if len(classes) > most else '')
    plural = 'class' if len(classes) == 1 else 'classes'
    return f'The model knows {len(classes)} {plural}: {names}.'


def find_examples(work_dirs: str | Path, number: int = 3) -> list[str]:
    """The first validation images of ``make demo``; [] without it."""
    return [str(p) for p in sorted(Path(work_dirs).glob('demo/data/val2017/*.jpg'))[:number]]


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
        self.device, self.max_loaded = device, max_loaded
        self._loaded = OrderedDict()
        self._lock = threading.Lock()  # one at a time: they share the processor anyway

    def model(self, name: str) -> ModelChoice:
        """Find a model; MissingFileError if a page from before a restart asks for another."""
        if name not in self.models:
            raise MissingFileError(f'there is no model {name!r} here: reload the page')
        return self.models[name]

    def knows(self, name: str, checkpoint: str) -> str:
        """What a model can find; it is loaded, and so ready for the first image."""
        with self._lock:
            return knows(self._load(self.model(name), checkpoint).classes)

    def predict(self, name: str, checkpoint: str, image: np.ndarray) -> Answer:
        """Predict an image, BGR uint8, (H, W, 3), by the names of model and checkpoint."""
        with self._lock:
            predictor = self._load(self.model(name), checkpoint)
            start = time.perf_counter()
            if predictor.scope == 'mmseg' and image.shape[0] * image.shape[1] > TILE_FROM_PIXELS:
                prediction = predict_tiled(predictor, image, TILING)
            else:
                [prediction] = predictor.predict([image])
            seconds = time.perf_counter() - start
        shown = fit(image[..., ::-1], prediction, 800)
        model = predictor.classes, predictor.palette
        return Answer(*shown, *model, seconds, predictor.device, image.shape[1::-1])

    def _load(self, model: ModelChoice, checkpoint: str) -> Predictor:
        path = next((path for path in model.checkpoints if path.name == checkpoint), None)
        if path is None:
            raise MissingFileError(f'{model.name} has no checkpoint {checkpoint!r}')
        # The time too: a training that continues writes new weights under the old name.
        key = str(model.config), str(path), path.stat().st_mtime_ns
        if key not in self._loaded:
            self._loaded[key] = Predictor(model.config, path, self.device)
            while len(self._loaded) > self.max_loaded:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key]
