"""What PyTorch 2.1, of the original packages, cannot do: tests of that are left out there."""

import pytest
import torch

OLD = tuple(int(number) for number in torch.__version__.split('.')[:2]) < (2, 4)
new_torch_only = pytest.mark.skipif(OLD, reason='PyTorch 2.1 does not do this')
#: The 16-bit dtypes that a CPU's operators and autocast know.
CPU_HALVES = [torch.bfloat16] if OLD else [torch.bfloat16, torch.float16]
