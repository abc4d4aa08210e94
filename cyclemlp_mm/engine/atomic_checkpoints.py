"""Checkpoints that survive a kill at any moment and a full disk."""

from collections import deque
from pathlib import Path

from mmengine._strategy import FSDPStrategy, SingleDeviceStrategy
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cyclemlp_mm.errors import UserError

from .atomic_files import remove_partial_files, write_atomically, written_beside

_INTERRUPTED = 'interrupted_ckpt'
#: Key of the message hub: how many figures the last evaluation gave.
NUM_FIGURES = 'evaluation_figures'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` whose files are whole or absent.

    Against mmengine's: files are written beside and then renamed; ``last_checkpoint`` names a file
    only once it is complete; an old checkpoint goes only when the new one is there; a save that
    fails (a full disk) is reported, and training goes on with the next one due, except at the end,
    where it stops with an error.

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

    def before_train(self, runner: Runner) -> None:
        """Also remove what a killed run left half written."""
        super().before_train(runner)
        if self.is_local:
            make_strategy_atomic(runner)
        if self.is_local and is_main_process():
            left = remove_partial_files(self.out_dir)
            if left:
                runner.logger.info(f'removed what an interrupted save left behind: {left}')

    def after_val_epoch(self, runner: Runner, metrics: 'dict | None' = None) -> None:
        """Also note whether the evaluation gave a figure, for the summary."""
        metrics = metrics or {}
        runner.message_hub.update_info(NUM_FIGURES, len(metrics))
        super().after_val_epoch(runner, metrics)

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
            name = self.filename_tmpl.format(f'{epoch}_iter_{iteration}')
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

    def save_again(self, runner: Runner) -> None:
        """Write this step's regular checkpoint again, if there is one; it knows more by now.

        One that :meth:`save_here` wrote goes.
        """
        step = runner.epoch if self.by_epoch else runner.iter
        last = runner.message_hub.get_info('last_ckpt')
        if last is not None and Path(last).name == self.filename_tmpl.format(step):
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            self._save_checkpoint_with_step(runner, step, meta)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """mmengine's one place for regular checkpoints; new file, then pointer, then removal."""
        kept = deque(getattr(self, 'keep_ckpt_ids', ()))
        new = not kept or kept[-1] != step
        outdated = kept[0] if new and self.max_keep_ckpts > 0 and len(kept) >= self.max_keep_ckpts \
            else None  # fmt: skip
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
            self._report(runner, self._say_failed(path, error))
            return
        self.last_ckpt = path
        self._point_to(runner, path)
        if outdated is not None:
            self._drop(self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(outdated)))  # fmt: skip
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

    def _best(self, runner: Runner) -> 'dict[str, tuple]':
        """Score and file of each metric's best checkpoint, by the end of the hub's keys."""
        hub = runner.message_hub
        metrics = self.key_indicators if self.save_best else ['']
        ends = [''] if len(metrics) == 1 else [f'_{metric}' for metric in metrics]
        return {end: (hub.runtime_info.get(f'best_score{end}'),
                      hub.runtime_info.get(f'best_ckpt{end}')) for end in ends}  # fmt: skip

    def _put_back_best(
        self, runner: Runner, end: str, score: 'float | None', path: 'str | None'
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

    def _point_to(self, runner: Runner, path: str) -> None:
        self.last_good = path
        if is_main_process():
            write_atomically(path.encode(), Path(runner.work_dir) / 'last_checkpoint')

    def _take_back(self, runner: Runner, kept: 'deque[int]', interrupted: 'str | None') -> None:
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.message_hub.update_info(_INTERRUPTED, interrupted)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))

    def _drop(self, path: str) -> bool:
        """Remove a checkpoint; whether there was one."""
        if not is_main_process():
            return False
        backend = getattr(self.file_backend, 'real', self.file_backend)
        if backend.isfile(path):
            backend.remove(path)
        elif backend.isdir(path):  # DeepSpeed's checkpoints are folders
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

    def _report(self, runner: Runner, message: str) -> None:
        done = runner.iter if self.by_epoch else runner.iter + 1  # as the hooks are called
        if done >= runner.max_iters:
            raise UserError(message)
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
