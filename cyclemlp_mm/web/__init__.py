"""The web demo: a page that predicts dropped images with trained models. Needs the extra ``web``.

Everything but :mod:`.page` works without Gradio.
"""

from .uploads import UploadLimits, read_upload
from .workbench import Answer, ModelChoice, Workbench, find_examples, find_models

__all__ = [
    'Answer',
    'ModelChoice',
    'UploadLimits',
    'Workbench',
    'find_examples',
    'find_models',
    'read_upload',
]
