"""From images, folders and videos to predictions on disk, through OpenMMLab's inferencers."""

from .inputs import Input, find_inputs, image_reader
from .predictions import Categories, Instances, Prediction, Segments
from .predictor import Predictor
from .tiling import Tiling, predict_tiled

__all__ = [
    'Categories',
    'Input',
    'Instances',
    'Prediction',
    'Predictor',
    'Segments',
    'Tiling',
    'find_inputs',
    'image_reader',
    'predict_tiled',
]
