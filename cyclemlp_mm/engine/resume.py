"""``--resume auto``: the newest checkpoint of a work dir that can be read."""

import re
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.weights import read_checkpoint

from .check_weights import check_resumable

_STEP = re.compile(r'(epoch|iter)_(\d+)(?:_iter_(\d+))?\.pth')


class FoundCheckpoint(NamedTuple):
    """What to resume from.

    Attributes:
        path (Path | None): The checkpoint; None where training has not got to its first one.
        passed_over (list[str]): Newer files that cannot be read, each with the reason.
        content (dict | None): What the checkpoint holds.
    """

    path: 'Path | None'
    passed_over: 'list[str]'
    content: 'dict | None' = None


def resume_training(cfg: Config, source: str) -> 'list[str]':
    """Set ``cfg`` to go on from a checkpoint, with the seed that it was trained with.

    Args:
        cfg (Config): Changed in place.
        source (str): A checkpoint, or 'auto' for the newest one of ``cfg.work_dir``.

    Returns:
        list[str]: What the user should know.

    Raises:
        CheckpointError: 'auto', and there are checkpoints, but none can be read.
        MissingFileError: The named checkpoint is not there.
    """
    said = []
    if source == 'auto':
        found = find_newest(cfg.work_dir)
        said = [f'passed over a broken checkpoint: {broken}' for broken in found.passed_over]
        if found.path is None:
            said.append(f'{cfg.work_dir} has no checkpoint yet: training starts at the beginning')
            return said
        said.append(f'resuming from {found.path}')
        path, content = str(found.path), found.content
    else:
        path, content = source, read_checkpoint(source)
    cfg.resume = True
    cfg.load_from = path
    return [*said, *_take_seed(cfg, content, path)]


def find_newest(work_dir: 'str | Path') -> FoundCheckpoint:
    """The newest readable checkpoint of a work dir.

    ``last_checkpoint`` says which one is newest, except for files that were completed after it was
    written. Should these not be readable, earlier ones of the same training follow. Files of an
    earlier training in the same folder, with higher numbers, do not count. Every byte of the file
    is read and checked before it is trusted.

    Raises:
        CheckpointError: There are some, but none can be read.
    """
    passed_over = []
    for path in _candidates(Path(work_dir)):
        try:
            content = read_checkpoint(path)
            if not isinstance(content, dict):
                raise CheckpointError(f'checkpoint {path} holds no training state')
            check_resumable(content, str(path))
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        return FoundCheckpoint(path, passed_over, content)
    if passed_over:
        raise CheckpointError(
            f'--resume auto: none of the {len(passed_over)} checkpoints in {work_dir} can be read; '
            f'the newest: {passed_over[0]}. To start anew, take another --work-dir, or move them '
            'away'
        )
    return FoundCheckpoint(None, [])


def _candidates(work_dir: Path) -> 'list[Path]':
    """Checkpoints from the newest to the oldest; best_* lack the optimiser's state."""
    files = [path for path in work_dir.glob('*.pth') if _STEP.fullmatch(path.name)]
    by_time = sorted(files, key=_written, reverse=True)
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        return by_time
    text = pointer.read_text(encoding='utf-8', errors='replace').strip()
    if not text:
        return by_time
    # The pointer holds a path from where training ran; the folder may have been moved since.
    named = work_dir / Path(text).name
    if not named.is_file() and Path(text).is_file():
        named = Path(text)
    after = [path for path in by_time if _written(path)[0] > pointer.stat().st_mtime_ns]
    before = sorted((p for p in files if _step(p) < _step(named)), key=_step, reverse=True)
    ordered = [*after, *([named] if named.is_file() else []), *before]
    return list(dict.fromkeys(ordered))


def _written(path: Path) -> 'tuple[int, tuple]':
    return path.stat().st_mtime_ns, _step(path)


def _step(path: Path) -> 'tuple[int, int]':
    match = _STEP.fullmatch(path.name)
    return (int(match[2]), int(match[3] or 0)) if match else (-1, 0)


def _take_seed(cfg: Config, content: object, path: str) -> 'list[str]':
    """The order of the data follows from the seed, and is made before mmengine reads the file."""
    meta = content.get('meta') if isinstance(content, dict) else None
    trained_with = meta.get('seed') if isinstance(meta, dict) else None
    if type(trained_with) is not int:
        return []
    randomness = dict(cfg.get('randomness') or {})
    asked = randomness.get('seed')
    cfg.randomness = dict(randomness, seed=trained_with)
    if asked in (None, trained_with):
        return []
    return [
        f'{path} was trained with randomness.seed={trained_with}; it goes on with that one, not '
        f'with {asked} of the config'
    ]
