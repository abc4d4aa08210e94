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


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_scope_of_a_toolbox():
    """Under the scope that a test before has left, names may be a toolbox's own classes."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


@pytest.fixture(autouse=True)
def _no_closed_log_files():
    """mmengine's init_weights() writes to the log file of the last run, which a test may close."""
    yield
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

    logger = MMLogger.get_current_instance()
    keep = Keep()
    logger.addHandler(keep)
    yield lines
    logger.removeHandler(keep)


@pytest.fixture(scope='session')
def detector(tmp_path_factory):
    """Config and checkpoint of a small RetinaNet with random weights."""
    from toy_models import save_detector

    return save_detector(tmp_path_factory.mktemp('detector'))


@pytest.fixture(scope='session')
def mask_detector(tmp_path_factory):
    """Of a Mask R-CNN."""
    from toy_models import save_detector

    return save_detector(tmp_path_factory.mktemp('masks'), masks=True)


@pytest.fixture(scope='session')
def segmentor(tmp_path_factory):
    """Of a Semantic FPN."""
    from toy_models import save_segmentor

    return save_segmentor(tmp_path_factory.mktemp('segmentor'))
