"""``.pdparams`` files: what PaddlePaddle's ``save`` pickles, read without PaddlePaddle.

A dict of numpy arrays under the parameters' names, and one entry that maps them to Paddle's inner
names. Linear weights are (in, out), the other way round than PyTorch's; which ones are Linear only
the family knows, see :attr:`PublishedFormat.from_paddle`.
"""

import numpy as np
import torch
from torch import Tensor

from .limits import DamagedFile, shorten

#: Paddle's table of inner names, kept in the same dict as the parameters.
INNER_NAMES = 'StructuredToParameterName@@'


class PaddleStateDict(dict):
    """Names to tensors as Paddle has them: Linear weights are (in, out)."""


def is_paddle(content: object) -> bool:
    """Whether an unpickled object is what Paddle saves: arrays under names."""
    return isinstance(content, dict) and (
        INNER_NAMES in content or any(_array(value) is not None for value in content.values())
    )


def to_tensors(content: dict) -> PaddleStateDict:
    """The arrays of an unpickled file as tensors; ``content`` is emptied on the way.

    Raises:
        DamagedFile: An entry that is no array under a name.
    """
    content.pop(INNER_NAMES, None)
    state_dict = PaddleStateDict()
    for name in list(content):
        array = _array(content.pop(name))  # popped, so that the file is not there twice
        if not isinstance(name, str) or array is None:
            raise DamagedFile(f'its entry {shorten(name)} is no array under a name')
        state_dict[name] = _tensor(array)
    return state_dict


def _array(value: object) -> 'np.ndarray | None':
    if isinstance(value, tuple) and len(value) == 2:  # a tensor is saved with its inner name
        value = value[1]
    return value if isinstance(value, np.ndarray) else None


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype == np.uint16:  # how Paddle saves bfloat16, which numpy does not have
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype in (np.uint32, np.uint64) and not hasattr(torch, 'uint32'):
        raise DamagedFile(f'it holds an array of {array.dtype}, which no weight is')
    return torch.from_numpy(array.copy())
