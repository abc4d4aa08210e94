"""``.pdparams`` files: what PaddlePaddle's ``save`` pickles, read without PaddlePaddle.

A dict of numpy arrays under the parameters' names, and one entry that maps them to Paddle's inner
names. Linear weights are (in, out), the other way round than PyTorch's; which ones are Linear only
the family knows, see :attr:`PublishedFormat.from_paddle`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclemlp_mm.errors import shorten

from .allowed_types import DamagedFile

#: Paddle's table of inner names, kept in the same dict as the parameters.
INNER_NAMES = 'StructuredToParameterName@@'
#: How protocol 2 keeps arrays over 1 GB: cut into several.
_CUT_ARRAYS = 'UnpackBigParamInfor@@'


class PaddleStateDict(dict):
    """Names to tensors as Paddle has them: Linear weights are (in, out)."""


def has_arrays(content: object) -> bool:
    """Whether an unpickled object is what Paddle saves, or Detectron2: that under 'model'."""
    return _is_paddle(content) or (isinstance(content, dict) and _is_paddle(content.get('model')))


def _is_paddle(content: object) -> bool:
    return isinstance(content, dict) and (
        INNER_NAMES in content or any(_array(value) is not None for value in content.values())
    )


def to_tensors(content: Any) -> Any:
    """An unpickled file with tensors for arrays; anything else in it stays as it is.

    Raises:
        DamagedFile: An array of a type that torch does not have, or one whose parts do not fit.
    """
    if not has_arrays(content):
        return content
    if not _is_paddle(content):
        return {**content, 'model': dict(to_tensors(content['model']))}
    content = {name: value for name, value in content.items() if name != INNER_NAMES}
    for name, cut in (content.pop(_CUT_ARRAYS, None) or {}).items():
        parts = [content.pop(part) for part in cut['slices']]
        content[name] = np.concatenate(parts).reshape(cut['OriginShape'])
    tensors: dict[int, Tensor] = {}  # an array under several names stays one
    for name, value in content.items():
        array = _array(value)
        if array is not None:
            if id(array) not in tensors:
                tensors[id(array)] = _tensor(name, array)
            content[name] = tensors[id(array)]
    return PaddleStateDict(content)


def _array(value: object) -> np.ndarray | None:
    if isinstance(value, tuple) and len(value) == 2:  # a tensor is saved with its inner name
        value = value[1]
    return value if isinstance(value, np.ndarray) else None


def _tensor(name: object, array: np.ndarray) -> Tensor:
    array = array.astype(array.dtype.newbyteorder('='), copy=False)
    try:
        if array.dtype == np.uint16:  # how Paddle saves bfloat16, which numpy does not have
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    except TypeError as error:
        text = f'its entry {shorten(name)} is an array of {array.dtype}, which no weight is'
        raise DamagedFile(text) from error
