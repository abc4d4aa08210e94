"""Fixtures that several tests share."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

sys.path.insert(0, str(Path(__file__).parent))  # for `from paths import …`
sys.path.insert(0, str(Path(__file__).parent / 'ops'))  # and `from mixer_cases import …`


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark as slow all but ``n`` parameters of a test with ``few(n)``, evenly chosen."""
    groups = {}
    for item in items:
        if item.get_closest_marker('few') and not item.get_closest_marker('slow'):
            groups.setdefault(item.nodeid.partition('[')[0], []).append(item)
    for group in groups.values():
        number = group[0].get_closest_marker('few').args[0]
        kept = {i * len(group) // number for i in range(number)}
        for i, item in enumerate(group):
            if i not in kept:
                item.add_marker('slow')


@pytest.fixture(autouse=True)
def _same_start():
    """The same random numbers for each test, no toolbox's scope, and no log file of another."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield
    # mmengine's init_weights() writes to the log file of the last run, which a test may close.
    logger = MMLogger.get_current_instance()
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler) and handler.stream is None:
            logger.removeHandler(handler)


@pytest.fixture
def log_lines():
    """Lines that mmengine's current logger writes while a test runs."""
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger, keep = MMLogger.get_current_instance(), Keep()
    logger.addHandler(keep)
    yield lines
    logger.removeHandler(keep)


def _saved(function, **settings):
    """A fixture with config and checkpoint of a small model with random weights."""

    @pytest.fixture(scope='session')
    def model(tmp_path_factory):
        import toy_models

        return getattr(toy_models, function)(tmp_path_factory.mktemp('model'), **settings)

    return model


detector = _saved('save_detector')  # RetinaNet
mask_detector = _saved('save_detector', masks=True)
segmentor = _saved('save_segmentor')  # Semantic FPN
