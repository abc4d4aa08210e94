"""Checkpoints that survive a kill at any moment and a full disk."""

import math
import os
import re
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from cyclemlp_mm.engine.runner.loops import validation_follows
from cyclemlp_mm.engine.runner.resume import compare_settings, is_resumed, loaded_from
from cyclemlp_mm.engine.work_dir import remove_partial_files, write_atomically
from cyclemlp_mm.errors import UserError

_INTERRUPTED = 'interrupted_ckpt'
#: Keys of the message hub that name checkpoints.
_NAMING = re.compile(rf'last_ckpt|keep_ckpt_ids|{_INTERRUPTED}|best_(score|ckpt)(_.*)?')
#: Key of the message hub, and so of checkpoints: whether the validation of the saved step is still
#: to come. A name that began with 'val' would be logged with the figures of every validation.
VALIDATION_DUE = 'due_validation'


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
        self.unit = 'epoch' if self.by_epoch else 'iter'
        self.last_good: str | None = None
        self._steps: dict[str, int] = {}

    def before_train(self, runner: Runner) -> None:
        """Also remove what a killed run left half written."""
        # mmengine removes what is named here, and the names may come from a checkpoint.
        info = runner.message_hub.runtime_info
        named = {key: info.pop(key) for key in list(info) if _NAMING.fullmatch(key)}
        super().before_train(runner)
        if is_resumed(runner):
            self._take_over(runner, named)
        if self.is_local and is_main_process() and (left := remove_partial_files(self.out_dir)):
            runner.logger.info(f'removed what an interrupted save left behind: {left}')

    def _take_over(self, runner: Runner, named: dict[str, object]) -> None:
        """Keep what a resumed checkpoint says about other checkpoints, if these are this run's."""
        source, hub = loaded_from(runner), runner.message_hub
        own, is_url = self._own_file(source), '://' in source
        if own is None or (self.is_local and (is_url or not os.path.samefile(source, own))):
            named = {}
            runner.logger.info(
                f'{source} is not of the folder {self.out_dir}: what it names is not touched, and '
                'the best checkpoint is found again'
            )
        elif named:
            self._point_to(runner, own)
        self.last_ckpt = self._own_file(named.get('last_ckpt'))
        hub.update_info('last_ckpt', self.last_ckpt)
        hub.update_info(_INTERRUPTED, self._own_file(named.get(_INTERRUPTED)))
        if self.max_keep_ckpts > 0:
            ids = named.get('keep_ckpt_ids')
            ids = [i for i in ids if type(i) is int] if isinstance(ids, (list, tuple)) else []
            hub.update_info('keep_ckpt_ids', ids)
        for end in self._ends().values():
            score, path = named.get(f'best_score{end}'), named.get(f'best_ckpt{end}')
            found = self._own_file(path)
            if type(score) in (int, float) and not math.isnan(score) and found:
                hub.update_info_dict({f'best_score{end}': score, f'best_ckpt{end}': found})
            elif path is not None:
                runner.logger.warning(
                    f'the best checkpoint {path!r:.200} is not in {self.out_dir}: the next '
                    'validation begins a new one'
                )

    def _own_file(self, path: object) -> str | None:
        """The file of this run's folder with that path's name, if it is there and the run's own."""
        name = os.path.basename(path) if isinstance(path, str) else ''
        own = self.file_backend.join_path(self.out_dir, name)
        return own if self._is_own_name(name) and self.file_backend.exists(own) else None

    def _is_own_name(self, name: str) -> bool:
        regular = {self.filename_tmpl.format(int(n)) for n in re.findall(r'\d{1,18}', name)}
        best = name.startswith('best_') and any(name.endswith(f'_{end}') for end in regular)
        interrupted = self.by_epoch and re.sub(r'_iter_\d+(?=\.\w+$)', '', name) in regular
        return name in regular or best or interrupted

    def _remove(self, *paths: str) -> list[str]:
        """Remove checkpoints of this run from its folder; returns those that were there."""
        removed = []
        for path in map(self._own_file, paths if is_main_process() else ()):
            if path and self.file_backend.isfile(path) and not os.path.islink(path):
                self.file_backend.remove(path)
                removed.append(path)
        return removed

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare optimiser and schedule of a resumed checkpoint with those of the config."""
        if is_resumed(runner) and isinstance(runner._train_loop, BaseLoop):
            compare_settings(runner, checkpoint, loaded_from(runner))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if not isinstance(runner._train_loop, BaseLoop):
            return
        if not metrics:
            super().after_val_epoch(runner, {})  # warns
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        replaced = self._save_best(runner, metrics or {}, meta)
        last = runner.message_hub.get_info('last_ckpt')
        # Not one that save_here wrote: the regular one replaces it.
        if last and (replaced or Path(last).name == self.filename_tmpl.format(meta[self.unit])):
            self._save(runner, meta)
        outdated = [old for new, old in replaced.items() if old not in (None, new)]
        for removed in self._remove(*outdated):
            runner.logger.info(f'The previous best checkpoint {removed} is removed')

    def save_here(self, runner: Runner, epoch: int, iteration: int) -> str:
        """Save after so many epochs and iterations, when interrupted; returns the file.

        The next regular checkpoint removes it. Raises UserError where it cannot be written.
        """
        name = self.filename_tmpl.format(iteration)
        if self.by_epoch:
            stem, suffix = os.path.splitext(self.filename_tmpl.format(epoch))
            name = f'{stem}_iter_{iteration}{suffix}'
        info = {}
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            info[VALIDATION_DUE] = validation_follows(runner, iteration)
        path = self.file_backend.join_path(self.out_dir, name)
        if path != runner.message_hub.get_info('last_ckpt'):
            info[_INTERRUPTED] = path
        failure = self._write(runner, name, dict(epoch=epoch, iter=iteration), info)
        if failure:
            raise UserError(failure)
        self._point_to(runner, path)
        return path

    def _save_checkpoint(self, runner: Runner) -> None:
        """What mmengine calls when a regular checkpoint is due."""
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        meta[self.unit] += 1
        if isinstance(runner.train_loop, EpochBasedTrainLoop) == self.by_epoch:
            due = validation_follows(runner, meta[self.unit])
            runner.message_hub.update_info(VALIDATION_DUE, due)
        self._save(runner, meta)

    def _save(self, runner: Runner, meta: dict[str, int]) -> None:
        """Write a regular checkpoint, then the pointer to it, then remove what it replaces."""
        hub, step = runner.message_hub, meta[self.unit]
        interrupted = hub.get_info(_INTERRUPTED)
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        info, outdated = {'last_ckpt': path, _INTERRUPTED: None}, []
        if self.max_keep_ckpts > 0:
            kept = [*(i for i in hub.get_info('keep_ckpt_ids') or [] if i != step), step]
            info['keep_ckpt_ids'] = kept[-self.max_keep_ckpts :]
            outdated = [self.filename_tmpl.format(i) for i in kept[: -self.max_keep_ckpts]]
        failure = self._write(runner, name, meta, info)
        if failure and path == self.last_ckpt:
            runner.logger.error(f'{failure}. That file is as it was before the validation')
        elif failure:
            self._report(runner, failure)
        else:
            self.last_ckpt = path
            self._point_to(runner, path)
            self._remove(*outdated, *([interrupted] if interrupted not in (None, path) else []))

    def _save_best(self, runner: Runner, metrics: dict, meta: dict[str, int]) -> dict:
        """Save a checkpoint for each metric that improved; returns new files with previous ones."""
        if not metrics or not self.save_best:
            return {}
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        hub, step, replaced, failures = runner.message_hub, meta[self.unit], {}, []
        for (metric, end), rule in zip(self._ends().items(), self.rules):
            score, best = metrics[metric], hub.get_info(f'best_score{end}')
            limit = self.init_value_map[rule] if best is None else best
            if score is None or not self.is_better_than[metric](score, limit):
                continue
            old = hub.get_info(f'best_ckpt{end}')
            name = f'best_{metric}_{self.filename_tmpl.format(step)}'.replace('/', '_')
            path = self.file_backend.join_path(self.out_dir, name)
            info = {f'best_score{end}': score, f'best_ckpt{end}': path}
            failure = self._write(runner, name, meta, info, weights_only=True)
            if failure:
                failures.append(failure)
                continue
            replaced[path] = old
            what = f'{score:0.4f} {metric} at {step} {self.unit}'
            runner.logger.info(f'The best checkpoint with {what} is saved to {name}.')
        if failures:  # after all were tried
            self._report(runner, '; '.join(failures))
        return replaced

    def _ends(self) -> dict[str, str]:
        """What the keys of each metric end with in the message hub, as mmengine names them."""
        metrics = self.key_indicators if self.save_best else ['']
        return {metric: '' if len(metrics) == 1 else f'_{metric}' for metric in metrics}

    def after_train(self, runner: Runner) -> None:
        """Publish the best checkpoints, too, where ``published_keys`` are set, as mmengine does."""
        best = [runner.message_hub.get_info(f'best_ckpt{end}') for end in self._ends().values()]
        self.best_ckpt_path_dict = {path: path for path in best if path}
        super().after_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the steps in; FlexibleRunner would count the current epoch as complete."""
        checkpoint['meta'].update(self._steps)

    def _write(
        self,
        runner: Runner,
        name: str,
        meta: dict[str, int],
        info: dict[str, object],
        weights_only: bool = False,
    ) -> str:
        """Write a checkpoint with these values in the message hub; returns why it failed, or ''."""
        known = runner.message_hub.runtime_info
        before, self._steps = dict(known), meta
        runner.message_hub.update_info_dict(info)
        path = self.file_backend.join_path(self.out_dir, name)
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
        except OSError as error:
            known.clear()
            known.update(before)
            last = self.last_good or self.last_ckpt
            kept = f'the last complete one is {last}' if last else 'there is none yet'
            return (
                f'checkpoint {path} could not be written ({error.strerror or error}); {kept}. Make '
                'space, or lower default_hooks.checkpoint.max_keep_ckpts'
            )
        finally:
            self._steps = {}
        return ''

    def _point_to(self, runner: Runner, path: str) -> None:
        self.last_good = path
        pointer = Path(runner.work_dir) / 'last_checkpoint'
        try:
            if is_main_process():
                write_atomically(path.encode(), pointer)
        except OSError as error:
            runner.logger.error(
                f'{pointer} could not be written ({error.strerror or error}); --resume finds '
                f'{path} without it'
            )

    def _report(self, runner: Runner, message: str) -> None:
        """Report a failed save, at the end of the training as an error."""
        done = runner.iter if self.by_epoch else runner.iter + 1  # as the hooks are called
        if done >= runner.max_iters:
            raise UserError(message)
        runner.logger.error(f'{message}. Training goes on and retries at the next checkpoint')
