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


def sentences(page):
    """The sentences of a page that promise something, without code blocks and comments."""
    text = (ROOT / page).read_text()
    text = re.sub(r'^ *```.*?^ *```|<!--.*?-->', '\n\n', text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'^(#+ .*|\|.*\||- .*)$', r'\n\1', text, flags=re.MULTILINE)
    blocks = [re.sub(r'\s+', ' ', block).strip() for block in re.split(r'\n\s*\n', text)]
    found = [s for block in blocks for s in re.split(r'(?<=[.:;!?])\s', block)]
    return [sentence for sentence in found if WORDS.search(sentence)]


@pytest.mark.parametrize('page', PAGES)
def test_every_promise_is_listed_and_every_listed_one_is_there(page):
    listed, found = [entry['says'] for entry in PROMISES.get(page, [])], sentences(page)
    missing = [s for s in found if not any(words in s for words in listed)]
    assert not missing, f'{page}: name the tests of these in tests/docs/promises.yml: {missing}'
    stale = [words for words in listed if not any(words in s for s in found)]
    assert not stale, f'{page} does not say this any more: {stale}'


@pytest.mark.parametrize('page', PROMISES)
def test_every_named_test_exists(page):
    assert page in PAGES
    for entry in PROMISES[page]:
        assert ('tests' in entry) != ('reason' in entry), entry
        for name in entry.get('tests', []):
            path, _, function = name.partition('::')
            text = (ROOT / path).read_text()
            assert not function or re.search(rf'^ *def {function}\b', text, re.MULTILINE), name
