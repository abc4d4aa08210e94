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
    expected = {package.__name__}
    # A function with the name of its module is hidden by the module, and needs a line of its own.
    expected |= {f'{package.__name__}.{n}.{n}' for n in modules(package) & set(public)}
    assert expected <= LISTED, f'add to docs/api: {expected - LISTED}'
    undocumented = [
        n for n in public if callable(getattr(package, n)) and not getattr(package, n).__doc__
    ]
    assert not undocumented


def test_every_tool_is_listed():
    tools = {path.stem for path in (ROOT / 'tools').glob('*.py')} & modules(cyclemlp_mm.apis)
    assert {f'cyclemlp_mm.apis.{tool}.{tool}' for tool in tools} <= LISTED


@pytest.mark.parametrize('name', sorted(LISTED))
def test_what_is_listed_exists(name):
    module, _, attribute = name.rpartition('.')
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        assert getattr(importlib.import_module(module), attribute).__doc__
