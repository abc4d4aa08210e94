"""``torch.compile`` on a CPU records a backbone as one operator; FX and script."""

import copy
import gc
import io
from contextlib import nullcontext

import pytest
import torch
from families import CYCLE, FAMILIES, OURS, assert_equal_levels, build, step
from torch import fx

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.models import CycleMLP, dense_backbone

compiles = pytest.mark.skipif(
    not hasattr(torch.compiler, '_is_exporting_flag'), reason='PyTorch 2.7 or later'
)


class Graphs:
    """A compiler that keeps what it is given, as the names of operators, and runs it."""

    def __init__(self):
        torch.compiler.reset()
        self.operators = []

    def __call__(self, module, example_inputs):
        self.operators.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    def compiled(self, model, **options):
        return torch.compile(model, backend=self, fullgraph=True, **options)

    @property
    def whole(self):
        return [any('cyclemlp_mm' in name for name in names) for names in self.operators]


@pytest.mark.few(1)
@compiles
@pytest.mark.parametrize('family', FAMILIES)
@torch.no_grad()
def test_one_operator_and_no_graph_per_size(family):
    model, graphs = build(family).eval(), Graphs()
    compiled = graphs.compiled(model)
    # Both sides of the sizes from which on the model takes other forms.
    for shape in ((2, 3, 64, 96), (3, 3, 512, 576), (5, 3, 131, 97)):
        image = torch.randn(shape)
        assert_equal_levels(compiled(image), model(image))
    assert graphs.whole in ([True], [True, True])  # of one size, then of any


@pytest.mark.slow
@compiles
@torch.no_grad()
def test_copies_and_changed_weights_are_what_runs():
    first = build('reweighted').eval()
    file, image, graphs = io.BytesIO(), torch.randn(1, 3, 64, 64), Graphs()
    torch.save(first, file)
    file.seek(0)
    twins = copy.deepcopy(first), torch.load(file, weights_only=False), build('reweighted').eval()
    for scale, model in enumerate((first, *twins), 2):
        for parameter in model.parameters():
            parameter.mul_(1 + scale / 10)
        compiled = graphs.compiled(model)
        assert_equal_levels(compiled(image), model(image))
        model.stem.proj.weight.mul_(2)
        assert_equal_levels(compiled(image), model(image))
    other = twins[-1].state_dict()
    call = graphs.compiled(lambda state: torch.func.functional_call(first, state, (image,)))
    assert_equal_levels(call(other), twins[-1](image))
    assert all(graphs.whole)


@pytest.mark.slow
@compiles
def test_standard_operators_where_more_is_asked_for():
    model, image, seen = build('reweighted'), torch.randn(1, 3, 64, 64), []
    graphs = Graphs()
    graphs.compiled(build('mpvit').train())(image)  # BatchNorms write their statistics
    with torch.no_grad():
        model.eval().stages[0][0].register_forward_hook(lambda *_: seen.append(1))
        graphs.compiled(model)(image)
        model = build('reweighted').eval()
        # vmap names a model by its repr, which no compiler can trace.
        graphs.compiled(torch.vmap(lambda one: model(one)))(image[None])
    assert graphs.whole == [False] * 3 and seen == [1]


def compiled_for_training(model, **options):
    """Compiled as by default, but for the last step, which takes long: making C++ of the graph."""
    torch.compiler.reset()
    return torch.compile(model, backend='aot_eager', fullgraph=True, **options)


def assert_same_step(model, compiled, image, seed=0):
    torch.manual_seed(seed)
    levels, gradients = step(model, image)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    found = compiled(image)
    sum(torch.sin(level).sum() for level in found).backward()
    assert_equal_levels(found, levels)
    for name, parameter in model.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
        else:
            assert torch.equal(parameter.grad, gradients[name]), name


@pytest.mark.few(2)
@compiles
@pytest.mark.parametrize('family', OURS)
@pytest.mark.parametrize(
    'options', [{}, dict(with_cp=True, drop_path_rate=0.5), dict(frozen_stages=1)], ids=str
)
def test_training_is_eagers_to_the_bit_at_any_size(family, options):
    if family == 'mpvit':
        options = {**options, 'norm_eval': True}  # else standard operators are taken
    model = build(family, **options).train()
    compiled = compiled_for_training(model, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        # Both sides of the sizes from which on the model takes other forms.
        for shape in ((2, 3, 64, 96), (3, 3, 256, 320), (2, 3, 131, 97)):
            assert_same_step(model, compiled, torch.randn(shape))
    gc.collect()
    assert not dense_backbone._GRAPHS


@compiles
def test_gradients_of_the_image_and_of_autocast():
    model, image = build('reweighted').train(), torch.randn(2, 3, 96, 64, requires_grad=True)
    compiled, found = compiled_for_training(model), []
    for forward in (model, compiled):
        for context in (nullcontext(), torch.autocast('cpu', torch.bfloat16)):
            with context:
                levels = forward(image)
            sum(level.float().sin().sum() for level in levels).backward()
            found.append([*levels, image.grad, *(p.grad for p in model.parameters())])
            image.grad = None
            model.zero_grad(set_to_none=True)
    assert found[1][-1].dtype == torch.float32
    assert_equal_levels(found[2], found[0])
    assert_equal_levels(found[3], found[1])


@compiles
def test_one_graph_holds_two_calls_and_what_is_around_them():
    """Each call draws its own random numbers, and has its own gradients."""
    model, image = build('reweighted', drop_path_rate=0.9).train(), torch.randn(8, 3, 64, 64)

    def difference(image):
        return sum((a - b).square().sum() for a, b in zip(model(image), model(image)))

    compiled, losses = compiled_for_training(difference), []
    for call in (difference, compiled):
        torch.manual_seed(0)
        losses.append(call(image))
        losses[-1].backward()
    assert losses[0] > 0
    torch.testing.assert_close(losses[1], losses[0])


@compiles
def test_a_graph_is_freed_without_backward_and_second_derivatives():
    model, image = build('summed').train(), torch.randn(1, 3, 64, 64)
    compiled = compiled_for_training(model)
    levels = compiled(image)
    assert len(dense_backbone._GRAPHS) == 1
    del levels
    gc.collect()
    assert not dense_backbone._GRAPHS
    with torch._functorch.config.patch(donated_buffer=False):
        compiled = compiled_for_training(model)
        loss = sum(level.sin().sum() for level in compiled(image))
    gradient = torch.autograd.grad(loss, model.stem.proj.weight, create_graph=True)
    with pytest.raises(RuntimeError, match='double backward'):
        gradient[0].sum().backward()


@compiles
def test_training_of_other_weights():
    model, twin = build('reweighted').train(), build('reweighted').train()
    image, state = torch.randn(1, 3, 64, 64), dict(twin.named_parameters())
    call = compiled_for_training(lambda: torch.func.functional_call(model, state, (image,)))
    levels, gradients = step(twin, image)
    twin.zero_grad(set_to_none=True)
    found = call()
    sum(torch.sin(level).sum() for level in found).backward()
    assert_equal_levels(found, levels)
    for name, parameter in twin.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name
    assert all(p.grad is None for p in model.parameters())


@compiles
@torch.no_grad()
def test_a_forward_that_does_more():
    class Doubled(CycleMLP):
        def forward(self, image):
            return [2 * level for level in super().forward(image)]

    model, image, graphs = Doubled(CYCLE).eval(), torch.randn(2, 3, 64, 64), Graphs()
    assert_equal_levels(graphs.compiled(model)(image), model(image))
    assert graphs.whole == [True]


@compiles
@pytest.mark.parametrize('strict', [True, False])
@torch.no_grad()
def test_standard_operators_in_an_export(strict):
    model, image = build('summed').eval(), torch.randn(1, 3, 64, 64)
    program = torch.export.export(model, (image,), strict=strict)
    assert not any('cyclemlp_mm' in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize('family', FAMILIES)
def test_script_and_fx_name_what_serves(family):
    model = torch.nn.Sequential(build(family).eval())
    with pytest.raises(UserError, match=r'torch\.jit\.script.*out_indices.*torch\.export'):
        torch.jit.script(model)
    # As torchvision's create_feature_extractor does it.
    with pytest.raises(UserError, match=r'FX.*out_indices.*torch\.export'):
        fx.symbolic_trace(model)


@compiles
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_at_any_size_by_the_default_compiler():
    torch.compiler.reset()
    model = build('reweighted').train()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for size in ((64, 64), (96, 128), (131, 97)):
        assert_same_step(model, compiled, torch.randn(2, 3, *size))
