"""Importing this makes mmengine load checkpoints safely; configs name it in ``custom_imports``."""

from cyclemlp_mm.weights import install_safe_loading

install_safe_loading()
