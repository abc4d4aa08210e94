"""``torch.compile`` in inference on a CPU records a backbone as one operator; FX and script."""

import copy
import io

import pytest
import torch
from families import CYCLE, FAMILIES, assert_equal_levels, build
from torch import fx

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.models import CycleMLP

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
    graphs.compiled(model)(image)  # gradients
    with torch.no_grad():
        graphs.compiled(model.train())(image)
        model.eval().stages[0][0].register_forward_hook(lambda *_: seen.append(1))
        graphs.compiled(model)(image)
        model = build('reweighted').eval()
        # vmap names a model by its repr, which no compiler can trace.
        graphs.compiled(torch.vmap(lambda one: model(one)))(image[None])
    assert graphs.whole == [False] * 4 and seen == [1]


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
    """Inductor cannot order strides of symbolic sizes for its layouts of convolutions."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = build('reweighted')
    options = dict(layout_optimization=False)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, options=options)

    def gradients(forward, image):
        model.zero_grad()
        sum((level * level.detach().sin()).mean() for level in forward(image)).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    for size in ((64, 64), (96, 128)):
        image = torch.randn(1, 3, *size)
        expected = gradients(model, image)
        for name, gradient in gradients(compiled, image).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
