"""Our configs by name in OpenMMLab's inference APIs: ``DetInferencer('retinanet_cyclemlp_…')``.

mmengine's ``BaseInferencer`` looks a name up among the models of one toolbox and has no place to
add others, so its one method that does this is wrapped: a name of ours is found first, everything
else goes on to mmengine. As with loading, importing ``cyclemlp_mm`` is what makes it work.
"""

from mmengine.config import Config
from mmengine.infer import BaseInferencer

from cyclemlp_mm.errors import MissingFileError

from .config_files import find_config


def register_config_names() -> None:
    """Let every inferencer of the process know the shipped configs; a second call does nothing."""
    theirs = BaseInferencer._load_model_from_metafile
    if getattr(theirs, 'knows_cyclemlp_mm', False):
        return

    def load_model(self: BaseInferencer, model: str) -> 'tuple[Config, str | None]':
        """The config of that name and its weights: ours have none, they must be given."""
        try:
            return Config.fromfile(find_config(model)), None
        except MissingFileError as error:
            # mmengine's own message would not say which names there are. (RepMLPs are also theirs.)
            if 'cyclemlp' in model or 'mpvit' in model:
                raise MissingFileError(f'model {model}: {error}') from None
        return theirs(self, model)

    load_model.knows_cyclemlp_mm = True
    BaseInferencer._load_model_from_metafile = load_model
