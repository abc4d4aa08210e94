"""Where only standard operators may be used, and where not."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from cyclemlp_mm.ops.recording import standard_operators_only


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Sub(torch.Tensor):
    pass


PLAIN = torch.ones(2, 3)


def test_plain_tensors_may_be_used_with_any_operator():
    for context in (torch.no_grad, torch.inference_mode, lambda: torch.device('cpu')):
        with context():
            assert not standard_operators_only(PLAIN, None, nn.Parameter(PLAIN))


def test_other_tensors_and_whoever_looks_on():
    for tensor in (PLAIN.as_subclass(Sub), PLAIN.to('meta'), PLAIN.to_sparse()):
        assert standard_operators_only(PLAIN, tensor)
    for context in (Mode, lambda: FlopCounterMode(display=False), forward_ad.dual_level):
        with context():
            assert standard_operators_only(PLAIN)
        assert not standard_operators_only(PLAIN)


def test_transforms():
    seen = []

    def look(x):
        seen.append(standard_operators_only(PLAIN))  # of a tensor that is not transformed, too
        return x.sum()

    for transform in (torch.func.grad, torch.func.vmap, torch.func.hessian):
        transform(look)(PLAIN)
    assert seen == [True] * 3


def test_counters_that_replace_functions(monkeypatch):
    linear = F.linear
    monkeypatch.setattr(F, 'linear', lambda *args: linear(*args))
    assert standard_operators_only(PLAIN)
