"""Where tests find the project, and the golden data that does not ship with it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'
PARITY = SHARED / 'parity'

needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason='golden outputs (../shared/parity) are not on this machine'
)
needs_data = pytest.mark.skipif(
    not (SHARED / 'data').is_dir(), reason='real images (../shared/data) are not on this machine'
)
