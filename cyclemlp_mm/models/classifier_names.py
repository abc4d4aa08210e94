"""Published classifier files under the names of mmpretrain's ``ImageClassifier``."""

from collections.abc import Mapping

from torch import Tensor, nn

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.weights import PublishedFormat
from cyclemlp_mm.weights.unwrap import WRAPPERS

_HEAD = {'head.weight': 'head.fc.weight', 'head.bias': 'head.fc.bias'}


def classifier_to_ours(
    state_dict: 'Mapping[str, Tensor]', published: PublishedFormat
) -> 'dict[str, Tensor] | None':
    """Rename a published classifier's state dict.

    Args:
        state_dict (Mapping[str, Tensor]): Published names, bare or under ``model`` or
            ``state_dict``; prefixes ``module.`` and ``backbone.`` are taken off.
        published (PublishedFormat): The family's names.

    Returns:
        dict[str, Tensor]: The backbone under ``backbone.``, its classifier as ``head.fc``. None if
        the names are not the published ones.

    Raises:
        CheckpointError: The file contradicts the architecture, see ``published.to_ours``.
    """
    for key in WRAPPERS:
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
            break
    bare = {_strip(name): tensor for name, tensor in state_dict.items()}
    if not published.is_published(bare):
        return None
    ours = published.to_ours(bare)
    return {_HEAD.get(name, f'backbone.{name}'): tensor for name, tensor in ours.items()}


def rename_published_classifier(
    state_dict: 'dict[str, Tensor]', backbone: nn.Module, published: PublishedFormat
) -> None:
    """What a classifier does before it loads: published names become ours, in place.

    mmengine's loader only warns about what does not fit; a published backbone that fits in part is
    the wrong size, and raises.

    Args:
        state_dict (dict[str, Tensor]): What is about to be loaded. Left alone unless published.
        backbone (nn.Module): The classifier's.
        published (PublishedFormat): Its family's names.

    Raises:
        CheckpointError: The file is published and does not fit the backbone.
    """
    ours = classifier_to_ours(state_dict, published)
    if ours is None:
        return
    own = {f'backbone.{name}': tensor for name, tensor in backbone.state_dict().items()}
    inside = {name: tensor for name, tensor in ours.items() if name.startswith('backbone.')}
    wrong = sorted(set(own) ^ set(inside))
    wrong += [n for n, t in inside.items() if n in own and t.shape != own[n].shape]
    if wrong:
        in_file, in_model = (
            published.describe({n.removeprefix('backbone.'): t for n, t in names.items()})
            for names in (inside, own)
        )
        raise CheckpointError(
            f'the published checkpoint does not fit the classifier: {len(wrong)} of {len(own)} '
            f'backbone tensors are missing, unknown or of another shape, e.g. {wrong[:3]}. The '
            f'file holds {in_file}; the model has {in_model}: take the config of the right size'
        )
    state_dict.clear()
    state_dict.update(ours)


def _strip(name: str) -> str:
    for prefix in ('module.', 'backbone.'):
        name = name.removeprefix(prefix)
    return name
