"""Mixed precision without a GPU."""

import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn

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


def test_close_to_full_precision_with_states_in_float32():
    full, mixed = Line(), Line()
    mixed.load_state_dict(full.state_dict())
    inputs = torch.randn(64, 8)
    for model, kind in ((full, 'OptimWrapper'), (mixed, 'CpuAmpOptimWrapper')):
        wrapper = wrapper_of(model, kind)
        for _ in range(5):
            model.train_step(dict(inputs=inputs), wrapper)
    assert mixed.seen == torch.bfloat16 and mixed.linear.weight.dtype == torch.float32
    assert compute_dtype(inputs) == torch.float32  # autocast ends with the step
    difference = (full.linear.weight - mixed.linear.weight).abs().max()
    assert 0 < difference < 0.01 * full.linear.weight.abs().max()
    plain = wrapper_of(mixed, 'OptimWrapper')  # goes on without mixed precision
    plain.load_state_dict(wrapper.state_dict())
    for parameter in mixed.parameters():
        momentum = plain.optimizer.state[parameter]['momentum_buffer']
        assert momentum.dtype == torch.float32 and momentum.any()
        assert torch.equal(momentum, wrapper.optimizer.state[parameter]['momentum_buffer'])
