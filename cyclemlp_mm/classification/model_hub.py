"""Our classifiers among mmpretrain's models by name."""

import tempfile
from pathlib import Path

import yaml
from mmpretrain.apis import ModelHub

from cyclemlp_mm.engine import configs_dir


def add_to_mmpretrain() -> None:
    """Let mmpretrain's ``list_models``, ``get_model`` and ``inference_model`` find our classifiers.

    They are named as our configs, such as ``'cyclemlp_b1_in1k'``; ``pretrained=True`` downloads the
    authors' weights, where they published any. A second call does nothing.
    """
    root = configs_dir().parent
    with tempfile.TemporaryDirectory() as folder:
        for metafile in sorted(configs_dir().glob('*/metafile.yml')):
            content = yaml.safe_load(metafile.read_text(encoding='utf-8'))
            models = [
                model
                for model in content['Models']
                if any(r['Task'] == 'Image Classification' for r in model.get('Results', ()))
                and not ModelHub.has(model['Name'])
            ]
            if not models:
                continue
            index = Path(folder, f'{metafile.parent.name}.yml')
            index.write_text(yaml.safe_dump({**content, 'Models': models}), encoding='utf-8')
            ModelHub.register_model_index(index, config_prefix=root)
