"""Hooks for tests of several processes; a config imports this module by ``custom_imports``."""

import json
import os
import signal
import time
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KeepMeanLoss(Hook):
    """Writes the loss of each iteration, averaged over the processes, to a file."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = torch.as_tensor(float(outputs['loss']), dtype=torch.float64)
        all_reduce(loss, 'mean')
        self.losses.append(loss.item())

    def after_train(self, runner):
        if get_rank() == 0:
            Path(runner.work_dir, 'losses.json').write_text(json.dumps(self.losses))


class _At(Hook):
    """Does something in the last process, after an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration and get_rank() == 1:
            self.act(runner)


@HOOKS.register_module()
class DieAt(_At):
    def act(self, runner):
        Path(runner.work_dir, 'died_at').write_text(str(time.time()))
        raise ZeroDivisionError('this process dies on purpose')


@HOOKS.register_module()
class SignalAt(_At):
    def act(self, runner):
        os.kill(os.getpid(), signal.SIGTERM)
