"""Safe loading for mmengine: its ``CheckpointLoader`` reads files and URLs by our reader.

``load_from``, ``--resume``, ``tools/test.py`` and the toolboxes' inference APIs all end in
mmengine's ``CheckpointLoader``, whose own loaders unpickle anything (0.10.7), or fall back to it
when the safe way rejects a file (0.10.12). Its registry of loaders by scheme is public.
"""

from mmengine.runner.checkpoint import CheckpointLoader

from .files import read_checkpoint
from .whole_model import for_mmengine


def install_safe_loading() -> None:
    """Let mmengine read local files and http(s) URLs by :func:`.read_checkpoint`, in this process.

    Checkpoints of every model are read so: those that are data load as before; those that are not
    are refused with the reason. Published files of our families come under the names that mmengine
    expects. Our tools call it, and configs do by naming :mod:`cyclemlp_mm.safe_loading` in
    ``custom_imports``. Names of other schemes (``torchvision://``, ``s3://``, …) stay mmengine's.
    """
    CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_path, force=True)


def load_from_path(filename: str, map_location: object = None) -> object:
    """A local file or an http(s) URL; mmengine logs what follows 'load_from_' in the name."""
    return for_mmengine(read_checkpoint(filename, map_location), filename)
