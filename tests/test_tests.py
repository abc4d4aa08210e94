"""Tests that could not fail: found by their text."""

import ast

import pytest
from paths import ROOT

#: Methods and functions that return the same value again.
COPIES = ('clone', 'copy', 'deepcopy', 'detach')
COMPARE = ('equal', 'allclose', 'array_equal', 'assert_close', 'assert_equal', 'assert_allclose')


def name_of(node):
    return getattr(node, 'attr', getattr(node, 'id', ''))


def original(node):
    """What an expression copies; the expression itself where it copies nothing."""
    while isinstance(node, ast.Call) and name_of(node.func) in COPIES:
        node = node.args[0] if node.args else node.func.value
    return ast.dump(node)


def is_call(node):
    return any(isinstance(part, ast.Call) for part in ast.walk(node))


def empty_checks(tree):
    """Lines that compare a value with itself or its own copy, or assert a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) in COMPARE and len(node.args) > 1:
            one, other = node.args[:2]
        elif isinstance(node, ast.Compare):
            one, other = node.left, node.comparators[0]
        elif isinstance(node, ast.Assert) and not any(
            isinstance(part, (ast.Name, ast.Attribute)) for part in ast.walk(node.test)
        ):
            yield node.lineno
            continue
        else:
            continue
        # Two calls of one function are a test of the function.
        if original(one) == original(other) and not (is_call(one) and is_call(other)):
            yield node.lineno


@pytest.mark.parametrize(
    'text, found',
    [
        ('assert torch.equal(x, x.clone())', True),
        ('torch.testing.assert_close(copy.deepcopy(a.b), a.b)', True),
        ('assert x[0] == x[0]', True),
        ('assert 1 + 1 == 2', True),
        ("assert 'a' in ['a', 'b']", True),
        ('assert torch.equal(x, before.clone())', False),
        ('assert model(x) == model(x)', False),
        ('assert x[0] == x[1]', False),
    ],
)
def test_empty_checks(text, found):
    assert bool(list(empty_checks(ast.parse(text)))) == found


def test_no_test_compares_a_value_with_itself():
    files = sorted((ROOT / 'tests').rglob('*.py'))
    assert len(files) > 50
    found = [
        f'{file}:{line}' for file in files for line in empty_checks(ast.parse(file.read_text()))
    ]
    assert not found
