"""Mixed precision without a GPU."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn

from cyclemlp_mm.engine.runner import CpuAmpOptimWrapper
from cyclemlp_mm.ops.recording import compute_dtype


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, inputs, mode):
        self.seen = self.linear(inputs).dtype
        return dict(loss=self.linear(inputs).float().square().mean())


def wrapper_of(model, kind):
    sgd = dict(type='SGD', lr=0.1, momentum=0.9)
    cfg = dict(type=kind, optimizer=sgd, clip_grad=dict(max_norm=1.0))
    return build_optim_wrapper(model, cfg)


def test_forward_is_bfloat16_and_weights_stay_float32():
    model = Line()
    wrapper = wrapper_of(model, 'CpuAmpOptimWrapper')
    assert isinstance(wrapper, CpuAmpOptimWrapper)
    before = model.linear.weight.detach().clone()
    inputs = torch.randn(4, 8)
    model.train_step(dict(inputs=inputs), wrapper)
    assert model.seen == torch.bfloat16
    assert model.linear.weight.dtype == torch.float32
    assert not torch.equal(before, model.linear.weight)
    assert compute_dtype(inputs) == torch.float32  # autocast ends with the step


def test_close_to_full_precision():
    torch.manual_seed(0)
    full, mixed = Line(), Line()
    mixed.load_state_dict(full.state_dict())
    inputs = torch.randn(64, 8)
    for model, kind in ((full, 'OptimWrapper'), (mixed, 'CpuAmpOptimWrapper')):
        wrapper = wrapper_of(model, kind)
        for _ in range(5):
            model.train_step(dict(inputs=inputs), wrapper)
    difference = (full.linear.weight - mixed.linear.weight).abs().max()
    assert 0 < difference < 0.01 * full.linear.weight.abs().max()


def test_state_goes_on_without_mixed_precision():
    model = Line()
    mixed = wrapper_of(model, 'CpuAmpOptimWrapper')
    model.train_step(dict(inputs=torch.randn(4, 8)), mixed)
    plain = wrapper_of(model, 'OptimWrapper')
    plain.load_state_dict(mixed.state_dict())
    for parameter in model.parameters():
        momentum = plain.optimizer.state[parameter]['momentum_buffer']
        assert momentum.dtype == torch.float32 and momentum.any()
        assert torch.equal(momentum, mixed.optimizer.state[parameter]['momentum_buffer'])


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='loss_scale'):
        CpuAmpOptimWrapper(optimizer=torch.optim.SGD(Line().parameters(), 0.1), loss_scale=1.0)
