"""docs/api lists every public name: those in the ``__all__`` of a package, and the tools."""

import importlib
import pkgutil
import re

import pytest
from paths import ROOT

import cyclemlp_mm
import cyclemlp_mm.apis

PAGES = ''.join(page.read_text() for page in (ROOT / 'docs/api').glob('*.md'))
LISTED = set(re.findall(r'^::: (\S+)$', PAGES, re.MULTILINE))
PACKAGES = [m.name for m in pkgutil.iter_modules(cyclemlp_mm.__path__) if m.ispkg]


def modules(package):
    return {m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg}


@pytest.mark.parametrize('name', PACKAGES)
def test_every_public_name_is_listed(name):
    package = importlib.import_module(f'cyclemlp_mm.{name}')
    public = getattr(package, '__all__', [])
    # A function with the name of its module is hidden by the module, and needs a line of its own.
    own = modules(package) & set(public)
    expected = {package.__name__, *(f'{package.__name__}.{n}.{n}' for n in own)}
    assert expected <= LISTED, f'add to docs/api: {expected - LISTED}'
    objects = {n: getattr(package, n) for n in public}
    assert not [n for n, value in objects.items() if callable(value) and not value.__doc__]


def test_every_tool_is_listed():
    tools = {path.stem for path in (ROOT / 'tools').glob('*.py')} & modules(cyclemlp_mm.apis)
    assert {f'cyclemlp_mm.apis.{tool}.{tool}' for tool in tools} <= LISTED


@pytest.mark.parametrize('name', sorted(LISTED))
def test_what_is_listed_exists(name):
    assert pkgutil.resolve_name(name).__doc__
