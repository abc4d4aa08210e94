"""The web demo: a page that predicts dropped images with trained models. Needs the extra ``web``.

Everything but :mod:`.page` works without Gradio.
"""

from .catalogue import ModelChoice, find_models
from .uploads import UploadLimits, read_upload
from .workbench import Answer, Workbench

__all__ = ['Answer', 'ModelChoice', 'UploadLimits', 'Workbench', 'find_models', 'read_upload']
