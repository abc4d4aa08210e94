"""Every sentence of README and docs that promises something names the test that shows it.

A promise is a sentence with "never", "always", "all", "any", "refused" or "error" in it. The tests
are in ``promises.yml``, by page, with the sentence's own words; a reason stands there instead where
the sentence promises nothing.
"""

import re

import pytest
import yaml
from paths import ROOT

PROMISES = yaml.safe_load((ROOT / 'tests/docs/promises.yml').read_text())
PAGES = ['README.md', *sorted(f'docs/{page.name}' for page in (ROOT / 'docs').glob('*.md'))]
WORDS = re.compile(r'\b(never|always|all|any|refused|errors?)\b', re.IGNORECASE)


def text_of(page):
    """A page in one line, without code blocks and comments."""
    text = (ROOT / page).read_text()
    text = re.sub(r'^ *```.*?^ *```|<!--.*?-->', '\n\n', text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'^(#+ .*|\|.*\||- .*)$', r'\n\1', text, flags=re.MULTILINE)
    return [re.sub(r'\s+', ' ', block).strip() for block in re.split(r'\n\s*\n', text)]


def sentences(page):
    """The sentences of a page that promise something."""
    for block in text_of(page):
        for sentence in re.split(r'(?<=[.:;!?])\s', block):
            if WORDS.search(sentence):
                yield sentence


@pytest.mark.parametrize('page', PAGES)
def test_every_promise_is_listed(page):
    listed = [entry['says'] for entry in PROMISES.get(page, [])]
    missing = [s for s in sentences(page) if not any(said in s for said in listed)]
    assert not missing, f'{page}: name the tests of these in tests/docs/promises.yml: {missing}'


@pytest.mark.parametrize('page', PROMISES)
def test_every_listed_promise_stands_in_its_page(page):
    found = list(sentences(page))
    stale = [e['says'] for e in PROMISES[page] if not any(e['says'] in s for s in found)]
    assert not stale, f'{page} does not say this any more: {stale}'


@pytest.mark.parametrize('page', PROMISES)
def test_every_named_test_exists(page):
    for entry in PROMISES[page]:
        assert ('tests' in entry) != ('reason' in entry), entry
        for name in entry.get('tests', []):
            path, _, function = name.partition('::')
            assert (ROOT / path).is_file(), name
            if function:
                assert re.search(rf'^ *def {function}\b', (ROOT / path).read_text(), re.M), name
