"""Checkpoints that survive a kill at any moment and a full disk."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from cyclemlp_mm.engine.runner.loops import validation_follows
from cyclemlp_mm.engine.runner.resumed import compare_settings, is_resumed, loaded_from
from cyclemlp_mm.engine.work_dir import remove_partial_files, write_atomically
from cyclemlp_mm.errors import UserError

_INTERRUPTED = 'interrupted_ckpt'
#: Keys of the message hub that name checkpoints.
_NAMING = re.compile(rf'last_ckpt|keep_ckpt_ids|{_INTERRUPTED}|best_(score|ckpt)(_.*)?')
#: Key of the message hub, and so of checkpoints: whether the validation of the saved step is still
#: to come. A name that began with 'val' would be logged with the figures of every validation.
VALIDATION_DUE = 'due_validation'
#: Key of the message hub: how many figures the last evaluation gave.
NUM_FIGURES = 'evaluation_figures'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` whose files are complete or absent.

    Unlike mmengine's: files are written under another name and then renamed; ``last_checkpoint``
    names a file only once it is complete; an old checkpoint is removed only when the new one is
    there; a save that fails (a full disk) is reported, and training continues and retries at the
    next checkpoint, except at the end, where it stops with an error. After the validation of its
    step, a checkpoint is saved again; until then it records that the validation is due. Only files
    of the run's own folder, with a name that the run itself gives, are removed, whatever a resumed
    checkpoint names.

    Args:
        **kwargs (object): As for :class:`mmengine.hooks.CheckpointHook`. If ``backend_args`` are
            given, for a store that is not a local disk, only that store's guarantees hold.
    """

    def __init__(self, **kwargs) -> None:
        if kwargs.get('backend_args') is None and kwargs.get('file_client_args') is None:
            kwargs['backend_args'] = dict(backend='atomic')
        super().__init__(**kwargs)
        self.is_local = self.backend_args == dict(backend='atomic')
        self.last_good: str | None = None
        self._steps: dict[str, int] = {}
        self._folders: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Also remove what a killed run left half written."""
        # mmengine removes what is named here, and the names may come from a checkpoint.
        info = runner.message_hub.runtime_info
        named = {key: info.pop(key) for key in list(info) if _NAMING.fullmatch(key)}
        super().before_train(runner)
        if is_resumed(runner):
            self._take_over(runner, named)
        if self.is_local and is_main_process():
            left = remove_partial_files(self.out_dir)
            if left:
                runner.logger.info(f'removed what an interrupted save left behind: {left}')

    def _take_over(self, runner: Runner, named: dict[str, object]) -> None:
        """Keep what a resumed checkpoint says about other checkpoints, if these are this run's."""
        source = loaded_from(runner)
        own = self._own_file(source)
        is_elsewhere = (
            self.is_local and own and ('://' in source or not os.path.samefile(source, own))
        )
        if own is None or is_elsewhere:
            named = {}
            runner.logger.info(
                f'{source} is not of the folder {self.out_dir}: checkpoints that it names are not '
                'touched, and the best one is found again'
            )
        elif named:
            self._point_to(runner, own)
        hub = runner.message_hub
        self.last_ckpt = self._own_file(named.get('last_ckpt'))
        hub.update_info('last_ckpt', self.last_ckpt)
        hub.update_info(_INTERRUPTED, self._own_file(named.get(_INTERRUPTED)))
        if self.max_keep_ckpts > 0:
            ids = named.get('keep_ckpt_ids')
            ids = [i for i in ids if type(i) is int] if isinstance(ids, (list, tuple)) else []
            for step in ids[: -self.max_keep_ckpts]:
                self._remove(self.filename_tmpl.format(step))
            hub.update_info('keep_ckpt_ids', ids[-self.max_keep_ckpts :])
        for end in self._ends().values():
            score, path = named.get(f'best_score{end}'), named.get(f'best_ckpt{end}')
            found = self._own_file(path)
            if type(score) in (int, float) and not math.isnan(score) and found:
                self._set_best(runner, end, score, found)
            elif path is not None:
                runner.logger.warning(
                    f'the best checkpoint so far is not in {self.out_dir} (the resumed one names '
                    f'{path!r:.200}): it is found again from the next validation on'
                )

    def _own_file(self, path: object) -> str | None:
        """The file of this run's folder with that path's name, if it is there and the run's own."""
        name = os.path.basename(path) if isinstance(path, str) else ''
        own = self.file_backend.join_path(self.out_dir, name)
        return own if self._is_own_name(name) and self.file_backend.exists(own) else None

    def _is_own_name(self, name: str) -> bool:
        """Whether this hook gives that name to a checkpoint."""
        regular = {self.filename_tmpl.format(int(n)) for n in re.findall(r'\d{1,18}', name)}
        best = name.startswith('best_') and any(name.endswith(f'_{end}') for end in regular)
        interrupted = self.by_epoch and re.sub(r'_iter_\d+(?=\.\w+$)', '', name) in regular
        return name in regular or best or interrupted

    def _remove(self, path: str) -> bool:
        """Remove a checkpoint of this run from its folder; whether there was one."""
        name = os.path.basename(path)
        path = self.file_backend.join_path(self.out_dir, name)
        if not is_main_process() or not self._is_own_name(name):
            return False
        if self.file_backend.isfile(path) and not os.path.islink(path):
            self.file_backend.remove(path)
        elif path in self._folders and self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)
        else:
            return False
        return True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare optimiser and schedule of a resumed checkpoint with those of the config."""
        if is_resumed(runner) and isinstance(runner._train_loop, BaseLoop):
            compare_settings(runner, checkpoint, loaded_from(runner))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Save the best checkpoint, and the one of this step again with what changed since."""
        metrics = metrics or {}
        hub = runner.message_hub
        hub.update_info(NUM_FIGURES, len(metrics))
        if not isinstance(runner._train_loop, BaseLoop):
            return
        if not metrics:
            super().after_val_epoch(runner, metrics)  # warns
        step = runner.epoch if self.by_epoch else runner.iter
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        replaced = {}
        if metrics and self.save_best:
            replaced = self._save_best(runner, metrics, step, meta)
        last = hub.get_info('last_ckpt')
        # Not one that save_here wrote: the regular one replaces it.
        if last and (replaced or Path(last).name == self.filename_tmpl.format(step)):
            self._save(runner, step, meta)
        for new, old in replaced.items():
            if old not in (None, new) and self._remove(old):
                runner.logger.info(f'The previous best checkpoint {old} is removed')

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
        hub = runner.message_hub
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            hub.update_info(VALIDATION_DUE, validation_follows(runner, iteration))
        path = self.file_backend.join_path(self.out_dir, name)
        if path != hub.get_info('last_ckpt'):
            hub.update_info(_INTERRUPTED, path)
        try:
            self._write(runner, name, dict(epoch=epoch, iter=iteration))
        except OSError as error:
            raise UserError(self._failure(path, error)) from error
        self._point_to(runner, path)
        return path

    def _save_checkpoint(self, runner: Runner) -> None:
        """What mmengine calls when a regular checkpoint is due."""
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        unit = 'epoch' if self.by_epoch else 'iter'
        meta[unit] += 1
        if isinstance(runner.train_loop, EpochBasedTrainLoop) == self.by_epoch:
            runner.message_hub.update_info(VALIDATION_DUE, validation_follows(runner, meta[unit]))
        self._save(runner, meta[unit], meta)

    def _save(self, runner: Runner, step: int, meta: dict[str, int]) -> None:
        """Write a regular checkpoint, then the pointer to it, then remove what it replaces."""
        hub = runner.message_hub
        before = {key: hub.get_info(key) for key in ('last_ckpt', _INTERRUPTED)}
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', path)
        hub.update_info(_INTERRUPTED, None)
        outdated = []
        if self.max_keep_ckpts > 0:
            before['keep_ckpt_ids'] = hub.get_info('keep_ckpt_ids') or []
            kept = [*(i for i in before['keep_ckpt_ids'] if i != step), step]
            outdated = kept[: -self.max_keep_ckpts]
            hub.update_info('keep_ckpt_ids', kept[-self.max_keep_ckpts :])
        try:
            self._write(runner, name, meta)
        except OSError as error:
            hub.update_info_dict(before)
            message = self._failure(path, error)
            if path == self.last_ckpt:
                runner.logger.error(f'{message}. That file is as it was before the validation')
            else:
                self._report(runner, message)
            return
        self.last_ckpt = path
        self._point_to(runner, path)
        for old in outdated:
            self._remove(self.filename_tmpl.format(old))
        if before[_INTERRUPTED] not in (None, path):
            self._remove(before[_INTERRUPTED])

    def _save_best(
        self, runner: Runner, metrics: dict, step: int, meta: dict[str, int]
    ) -> dict[str, str | None]:
        """Save a checkpoint for each metric that improved; returns new files with previous ones."""
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        info = runner.message_hub.runtime_info
        replaced, failures = {}, []
        for (metric, end), rule in zip(self._ends().items(), self.rules):
            score, old = metrics[metric], info.get(f'best_ckpt{end}')
            best = info.get(f'best_score{end}')
            limit = self.init_value_map[rule] if best is None else best
            if score is None or not self.is_better_than[metric](score, limit):
                continue
            name = f'best_{metric}_{self.filename_tmpl.format(step)}'.replace('/', '_')
            path = self.file_backend.join_path(self.out_dir, name)
            self._set_best(runner, end, score, path)
            try:
                self._write(runner, name, meta, weights_only=True)
            except OSError as error:
                self._set_best(runner, end, best, old)
                failures.append(self._failure(path, error))
                continue
            replaced[path] = old
            runner.logger.info(
                f'The best checkpoint with {score:0.4f} {metric} at {step} '
                f'{"epoch" if self.by_epoch else "iter"} is saved to {name}.'
            )
        for message in failures:
            self._report(runner, message)
        return replaced

    def _ends(self) -> dict[str, str]:
        """What the keys of each metric end with in the message hub, as mmengine names them."""
        metrics = self.key_indicators if self.save_best else ['']
        return {metric: '' if len(metrics) == 1 else f'_{metric}' for metric in metrics}

    def _set_best(self, runner: Runner, end: str, score: float | None, path: str | None) -> None:
        for key, value in ((f'best_score{end}', score), (f'best_ckpt{end}', path)):
            runner.message_hub.runtime_info.pop(key, None)
            if value is not None:
                runner.message_hub.update_info(key, value)
        if end:
            self.best_ckpt_path_dict[end[1:]] = path
        else:
            self.best_ckpt_path = path

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the steps in; FlexibleRunner would count the current epoch as complete."""
        checkpoint['meta'].update(self._steps)

    def _write(
        self, runner: Runner, name: str, meta: dict[str, int], weights_only: bool = False
    ) -> None:
        self._steps = meta
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer and not weights_only,
                save_param_scheduler=self.save_param_scheduler and not weights_only,
                meta=dict(meta),
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **({} if weights_only else self.args),
            )
        finally:
            self._steps = {}
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isdir(path):
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

    def _failure(self, path: str, error: OSError) -> str:
        last = self.last_good or self.last_ckpt
        kept = f'the last complete one is {last}' if last else 'there is none yet'
        return (
            f'checkpoint {path} could not be written ({error.strerror or error}); {kept}. Make '
            'space, or lower default_hooks.checkpoint.max_keep_ckpts'
        )

    def _report(self, runner: Runner, message: str) -> None:
        """Report a failed save, at the end of the training as an error."""
        done = runner.iter if self.by_epoch else runner.iter + 1  # as the hooks are called
        if done >= runner.max_iters:
            raise UserError(message)
        runner.logger.error(f'{message}. Training goes on and retries at the next checkpoint')
