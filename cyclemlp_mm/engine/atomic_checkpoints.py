"""Checkpoints that survive a kill at any moment and a full disk."""

from __future__ import annotations

import math
import os
import re
from collections import deque
from pathlib import Path

from mmengine._strategy import FSDPStrategy, SingleDeviceStrategy
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner, find_latest_checkpoint

from cyclemlp_mm.errors import UserError

from .atomic_files import remove_partial_files, write_atomically, written_beside
from .resumed_settings import compare_settings
from .train_loops import validation_follows

_INTERRUPTED = 'interrupted_ckpt'
#: Keys of the message hub that name checkpoints.
_NAMING = re.compile(rf'last_ckpt|keep_ckpt_ids|{_INTERRUPTED}|best_(score|ckpt)(_.*)?')
#: Key of the message hub, and so of checkpoints: whether the validation of the saved step is still
#: to come. One that began with 'val' would stand among the figures of every validation in the log.
VALIDATION_DUE = 'due_validation'
#: Key of the message hub: how many figures the last evaluation gave.
NUM_FIGURES = 'evaluation_figures'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` whose files are whole or absent.

    Against mmengine's: files are written beside and then renamed; ``last_checkpoint`` names a file
    only once it is complete; an old checkpoint goes only when the new one is there; a save that
    fails (a full disk) is reported, and training goes on with the next one due, except at the end,
    where it stops with an error. After the validation of its step, a checkpoint is saved again;
    until then it says that the validation is due. Only files of the run's own folder, with a name
    that the run itself writes, are removed, whatever a resumed checkpoint names.

    Args:
        **kwargs: As for :class:`mmengine.hooks.CheckpointHook`. ``backend_args`` of one's own, for
            a store that is not a local disk, are kept, and that store's guarantees are then all.
    """

    def __init__(self, **kwargs) -> None:
        if kwargs.get('backend_args') is None and kwargs.get('file_client_args') is None:
            kwargs['backend_args'] = dict(backend='atomic')
        super().__init__(**kwargs)
        self.is_local = self.backend_args == dict(backend='atomic')
        self._steps: dict[str, int] = {}
        self._saves = 0
        self._folders: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Also remove what a killed run left half written."""
        # mmengine removes what is named here, and the names may come from a checkpoint.
        info = runner.message_hub.runtime_info
        named = {key: info.pop(key) for key in list(info) if _NAMING.fullmatch(key)}
        super().before_train(runner)
        if getattr(runner, '_resume', False):
            self._take_over(runner, named)
        if self.is_local:
            make_strategy_atomic(runner)
        if self.is_local and is_main_process():
            left = remove_partial_files(self.out_dir)
            if left:
                runner.logger.info(f'removed what an interrupted save left behind: {left}')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare optimiser and schedule of a resumed checkpoint with those of the config."""
        if getattr(runner, '_resume', False) and isinstance(runner._train_loop, BaseLoop):
            compare_settings(runner, checkpoint, self._source(runner))

    @staticmethod
    def _source(runner: Runner) -> str:
        return str(runner._load_from or find_latest_checkpoint(runner.work_dir))

    def _take_over(self, runner: Runner, named: dict[str, object]) -> None:
        """Keep what a resumed checkpoint says of other checkpoints, if these are this run's."""
        source = self._source(runner)
        own = self._found(source)
        is_url = '://' in source
        if own is None or (self.is_local and (is_url or not os.path.samefile(source, own))):
            named = {}
            runner.logger.info(
                f'{source} is not of the folder {self.out_dir}: checkpoints that it names are not '
                'touched, and the best one is found again'
            )
        hub = runner.message_hub
        interrupted = self._found(named.get(_INTERRUPTED))
        hub.update_info(_INTERRUPTED, interrupted)
        if self.max_keep_ckpts > 0:
            ids = named.get('keep_ckpt_ids')
            ids = [i for i in ids if type(i) is int] if isinstance(ids, (list, tuple)) else []
            for step in ids[: -self.max_keep_ckpts]:
                self._drop(self.filename_tmpl.format(step))
            self.keep_ckpt_ids = deque(ids, self.max_keep_ckpts)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        for end in self._best(runner):
            score, path = named.get(f'best_score{end}'), named.get(f'best_ckpt{end}')
            found = self._found(path)
            if type(score) in (int, float) and not math.isnan(score) and found:
                self._put_back_best(runner, end, score, found)
            elif path is not None:
                runner.logger.warning(
                    f'the best checkpoint so far is not in {self.out_dir} (the resumed one names '
                    f'{path!r:.200}): it is found again from the next validation on'
                )
        last = self._found(named.get('last_ckpt'))
        hub.update_info('last_ckpt', last)
        self.last_ckpt = last
        if own is not None and named:
            self._point_to(runner, own)

    def _found(self, path: object) -> str | None:
        """The file of this run's folder with that path's name, if it is there and the run's own."""
        name = os.path.basename(path) if isinstance(path, str) else ''
        own = self.file_backend.join_path(self.out_dir, name)
        return own if self._is_own_name(name) and self._backend().exists(own) else None

    def _is_own_name(self, name: str) -> bool:
        """Whether this hook gives that name to a checkpoint."""
        regular = {self.filename_tmpl.format(int(n)) for n in re.findall(r'\d{1,18}', name)}
        best = name.startswith('best_') and any(name.endswith(f'_{end}') for end in regular)
        interrupted = self.by_epoch and re.sub(r'_iter_\d+(?=\.\w+$)', '', name) in regular
        return name in regular or best or interrupted

    def _backend(self) -> object:
        return getattr(self.file_backend, 'real', self.file_backend)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Also note whether the evaluation gave a figure, for the summary, and save this step."""
        metrics = metrics or {}
        runner.message_hub.update_info(NUM_FIGURES, len(metrics))
        saves = self._saves
        super().after_val_epoch(runner, metrics)
        if self._saves == saves and isinstance(runner._train_loop, BaseLoop):
            self._save_again(runner)

    def save_here(self, runner: Runner, epoch: int, iteration: int) -> str:
        """Save between regular checkpoints, for an interruption; the next regular one removes it.

        Args:
            runner (Runner): The runner.
            epoch (int): Epochs that are complete.
            iteration (int): Iterations that are complete.

        Returns:
            str: The file.

        Raises:
            UserError: It could not be written.
        """
        name = self.filename_tmpl.format(iteration)
        if self.by_epoch:
            stem, suffix = os.path.splitext(self.filename_tmpl.format(epoch))
            name = f'{stem}_iter_{iteration}{suffix}'
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            due = validation_follows(runner, iteration)
            runner.message_hub.update_info(VALIDATION_DUE, due)
        path = self.file_backend.join_path(self.out_dir, name)
        regular = path == runner.message_hub.get_info('last_ckpt')
        if not regular:
            runner.message_hub.update_info(_INTERRUPTED, path)
        try:
            self._write(runner, name, dict(epoch=epoch, iter=iteration))
        except OSError as error:
            raise UserError(self._say_failed(path, error)) from error
        self._point_to(runner, path)
        return path

    def _save_checkpoint(self, runner: Runner) -> None:
        """mmengine's regular save; the file also says whether a validation is to follow."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop) == self.by_epoch:
            done = (runner.epoch if self.by_epoch else runner.iter) + 1
            runner.message_hub.update_info(VALIDATION_DUE, validation_follows(runner, done))
        super()._save_checkpoint(runner)

    def _save_again(self, runner: Runner) -> None:
        """Write this step's regular checkpoint, if there is one, with what a validation changed.

        One that :meth:`save_here` wrote goes.
        """
        step = runner.epoch if self.by_epoch else runner.iter
        last = runner.message_hub.get_info('last_ckpt')
        if last is not None and Path(last).name == self.filename_tmpl.format(step):
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            self._save_checkpoint_with_step(runner, step, meta)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """mmengine's one place for regular checkpoints; new file, then pointer, then removal."""
        self._saves += 1
        kept = deque(getattr(self, 'keep_ckpt_ids', ()))
        new = not kept or kept[-1] != step
        outdated = (
            kept[0]
            if new and self.max_keep_ckpts > 0 and len(kept) >= self.max_keep_ckpts
            else None
        )
        if self.max_keep_ckpts > 0 and new:
            self.keep_ckpt_ids.append(step)  # a deque of that length
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        interrupted = runner.message_hub.get_info(_INTERRUPTED)
        runner.message_hub.update_info(_INTERRUPTED, None)
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        try:
            self._write(runner, name, meta)
        except OSError as error:
            self._take_back(runner, kept, interrupted)
            self._report(runner, self._say_failed(path, error), again=path == self.last_ckpt)
            return
        self.last_ckpt = path
        self._point_to(runner, path)
        if outdated is not None:
            self._drop(self.filename_tmpl.format(outdated))
        if interrupted not in (None, path):
            self._drop(interrupted)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As mmengine's, but the previous best one goes when the new one is there."""
        before = self._best(runner)
        real = self.file_backend
        self.file_backend = _KeepingOld(real)
        try:
            super()._save_best_checkpoint(runner, metrics)
            failed = None
        except OSError as error:
            # It notes each metric's best one before it writes it: the last one noted has failed.
            changed = [end for end, best in self._best(runner).items() if best != before[end]]
            if not changed:
                raise
            failed = changed[-1], error
        finally:
            self.file_backend = real
        message = None
        if failed is not None:
            end, error = failed
            message = self._say_failed(self._best(runner)[end][1], error)
            self._put_back_best(runner, end, *before[end])
        for end, (_, path) in self._best(runner).items():
            old = before[end][1]
            if old and old != path and self._drop(old):
                runner.logger.info(f'The previous best checkpoint {old} is removed')
        if message is not None:
            self._report(runner, message)

    def _best(self, runner: Runner) -> dict[str, tuple]:
        """Score and file of each metric's best checkpoint, by the end of the hub's keys."""
        hub = runner.message_hub
        metrics = self.key_indicators if self.save_best else ['']
        ends = [''] if len(metrics) == 1 else [f'_{metric}' for metric in metrics]
        return {
            end: (hub.runtime_info.get(f'best_score{end}'), hub.runtime_info.get(f'best_ckpt{end}'))
            for end in ends
        }

    def _put_back_best(
        self, runner: Runner, end: str, score: float | None, path: str | None
    ) -> None:
        for name, value in (('best_score', score), ('best_ckpt', path)):
            runner.message_hub.runtime_info.pop(f'{name}{end}', None)
            if value is not None:
                runner.message_hub.update_info(f'{name}{end}', value)
        if end:
            self.best_ckpt_path_dict[end[1:]] = path
        else:
            self.best_ckpt_path = path

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """The step that :meth:`save_here` was told; FlexibleRunner takes the epoch for complete."""
        checkpoint['meta'].update(self._steps)

    def _write(self, runner: Runner, name: str, meta: dict) -> None:
        self._steps = {key: meta[key] for key in ('epoch', 'iter') if key in meta}
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        finally:
            self._steps = {}
        path = self.file_backend.join_path(self.out_dir, name)
        if self._backend().isdir(path):
            self._folders.add(path)

    def _point_to(self, runner: Runner, path: str) -> None:
        self.last_good = path
        pointer = Path(runner.work_dir) / 'last_checkpoint'
        if not is_main_process():
            return
        try:
            write_atomically(path.encode(), pointer)
        except OSError as error:
            runner.logger.error(
                f'{pointer} could not be written ({error.strerror or error}) and does not name '
                f'{path}; --resume finds that file without it'
            )

    def _take_back(self, runner: Runner, kept: deque[int], interrupted: str | None) -> None:
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.message_hub.update_info(_INTERRUPTED, interrupted)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))

    def _drop(self, path: str) -> bool:
        """Remove a checkpoint of this run from its folder; whether there was one."""
        name = os.path.basename(path)
        path = self.file_backend.join_path(self.out_dir, name)
        if not is_main_process() or not self._is_own_name(name):
            return False
        backend = self._backend()
        if backend.isfile(path) and not os.path.islink(path):
            backend.remove(path)
        elif path in self._folders and backend.isdir(path):  # DeepSpeed's, of this process
            backend.rmtree(path)
        else:
            return False
        return True

    def _say_failed(self, path: str, error: OSError) -> str:
        last = getattr(self, 'last_good', None) or self.last_ckpt
        kept = f'the last whole one is {last}' if last else 'there is none yet'
        return (
            f'checkpoint {path} could not be written ({error.strerror or error}); {kept}. Make '
            'space, or lower default_hooks.checkpoint.max_keep_ckpts'
        )

    def _report(self, runner: Runner, message: str, again: bool = False) -> None:
        done = runner.iter if self.by_epoch else runner.iter + 1  # as the hooks are called
        if again:
            runner.logger.error(f'{message}. That file is as it was before the validation')
        elif done >= runner.max_iters:
            raise UserError(message)
        else:
            runner.logger.error(f'{message}. Training goes on, and tries again at the next one due')


def make_strategy_atomic(runner: Runner) -> None:
    """Have a runner's strategy, if it has one, write its files beside and then rename them.

    FlexibleRunner's strategies open a checkpoint by its name, whatever ``backend_args`` say. Left
    alone are those that write folders.

    Args:
        runner (Runner): Any; its strategy is changed.
    """
    strategy = getattr(runner, 'strategy', None)
    if not isinstance(strategy, SingleDeviceStrategy) or (
        isinstance(strategy, FSDPStrategy) and not strategy._is_full_state_dict()
    ):
        return
    save = strategy.save_checkpoint

    def save_atomically(filename: str, **kwargs) -> None:
        if not is_main_process():  # takes part, and writes nothing
            save(filename, **kwargs)
            return
        with written_beside(filename) as partial:
            save(str(partial), **kwargs)

    strategy.save_checkpoint = save_atomically


class _KeepingOld:
    """A file backend that sees no files, so that mmengine neither removes one nor says so."""

    def __init__(self, real: object) -> None:
        self.real = real

    def isfile(self, path: str) -> bool:
        return False

    isdir = isfile

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)
