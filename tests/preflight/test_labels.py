"""What the preflight says about label images that can all be used."""

import re

import numpy as np
import pytest
from PIL import Image

from cyclemlp_mm.preflight.findings import NOTE, Report
from cyclemlp_mm.preflight.labels import check_labels


@pytest.mark.parametrize('rule, share', [
    (dict(reduce_zero_label=True, ignore_label=None),
     r'ignored: 50\.0% of the pixels looked at\. If 0.*--ignore-label$'),
    (dict(reduce_zero_label=False, ignore_label=2), r'ignored: 25\.0% of the pixels looked at$'),
])  # fmt: skip
def test_the_share_that_is_ignored_is_said(tmp_path, rule, share):
    """A class that is taken for 'ignore', or the reverse, shows in nothing else."""
    labels = np.zeros((4, 4), np.uint8)
    labels[:2, :2], labels[2:, :2] = 1, 2
    image = Image.fromarray(labels)
    image.save(tmp_path / 'labels.png')
    image.convert('RGB').save(tmp_path / 'image.png')
    report = Report()
    pairs = [(tmp_path / 'image.png', tmp_path / 'labels.png')]
    check_labels(report, pairs, ('a', 'b'), full=True, **rule)
    assert [finding.level for finding in report.findings] == [NOTE]
    assert re.search(share, str(report.findings[0]))
