"""What is wrong with data, config and machine, found before the first iteration.

:func:`run_preflight` collects findings; errors stop a training, all else is said with counts.
"""

from .findings import Finding, Report
from .run import check_test_data, run_preflight

__all__ = ['Finding', 'Report', 'check_test_data', 'run_preflight']
