"""Safe loading for all of mmengine: its ``CheckpointLoader`` reads files by our reader.

Why here: ``load_from``, ``--resume``, ``tools/test.py`` and the toolboxes' inference APIs all end
in mmengine's ``CheckpointLoader``, whose own loaders unpickle anything (0.10.7), or fall back to it
when the safe way refuses a file (0.10.12). Its registry of loaders by scheme is public, made to be
filled, and the one place that all of them pass.

Why at import: the inference APIs are called with a config and a checkpoint and know nothing of us;
what they do first is import what the config's ``custom_imports`` name. So importing ``cyclemlp_mm``
changes how every checkpoint of the process is loaded, not only ours. That is meant: a file that is
data loads as before, whatever the model; one that is not is refused with the reason, where mmengine
would have run it. The ways round are :func:`~cyclemlp_mm.weights.unsafe_loading`, ``--unsafe-load``
and ``unsafe_load = True`` in a config.
"""

import re
import tempfile
from pathlib import Path

from mmengine.fileio import get_file_backend
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from cyclemlp_mm.errors import CheckpointError

from .files import read_checkpoint
from .whole_model import for_mmengine

_CEPH = (r'(\S+\:)?s3://', r'(\S+\:)?petrel://')
_ZOOS = ('modelzoo://', 'torchvision://', 'open-mmlab://', 'openmmlab://', 'mmcls://')


def register_safe_loaders() -> None:
    """Put our reader in the place of mmengine's loaders, for every scheme that it has."""
    for prefixes, loader in (
        (('', 'http://', 'https://'), load_from_path),
        (_ZOOS, load_from_zoo),
        (_CEPH, load_from_ceph),
        (('pavi://',), load_from_pavi),
    ):
        CheckpointLoader.register_scheme(prefixes, loader=loader, force=True)


# mmengine's log names what follows 'load_from_'.


def load_from_path(filename: str, map_location: object = None) -> object:
    """A local file or an http(s) URL."""
    return for_mmengine(read_checkpoint(filename, map_location), filename)


def load_from_zoo(filename: str, map_location: object = None) -> object:
    """A name in one of the lists of models that mmengine knows; their files are URLs."""
    scheme, _, name = filename.partition('://')
    if scheme in ('modelzoo', 'torchvision'):
        urls = mmengine_checkpoint.get_torchvision_models()
    elif scheme == 'mmcls':
        urls = mmengine_checkpoint.get_mmcls_models()
    else:
        urls = mmengine_checkpoint.get_external_models()
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in urls:
        raise CheckpointError(f'checkpoint {filename}: {scheme}:// has no model {name!r}')
    url = urls[name]
    if '://' not in url:
        url = str(Path(mmengine_checkpoint._get_mmengine_home()) / url)
    content = load_from_path(url, map_location)
    if scheme == 'mmcls' and isinstance(content, dict):
        state_dict = content.get('state_dict', content)
        return {'state_dict': {
            re.sub(r'^backbone\.', '', n): t for n, t in state_dict.items()
            if n.startswith('backbone.')
        }}  # fmt: skip
    return content


def load_from_ceph(filename: str, map_location: object = None) -> object:
    """An object of an S3 or Petrel store."""
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(filename).name
        path.write_bytes(backend.get(filename))
        return for_mmengine(read_checkpoint(path, map_location), filename)


def load_from_pavi(filename: str, map_location: object = None) -> object:
    """A service that is no longer there."""
    raise CheckpointError(f'checkpoint {filename}: pavi:// is not supported; give a local path')
