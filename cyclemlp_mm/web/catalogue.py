"""Which models the page offers: those of the work dirs, and those named at the start.

A config is a program, so the page takes none from the browser: it offers names from this list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclemlp_mm.engine import find_config
from cyclemlp_mm.errors import MissingFileError
from cyclemlp_mm.user_path import user_path

#: The work dir of ``make demo``; it comes first.
DEMO = 'demo'


@dataclass(frozen=True)
class ModelChoice:
    """A config and the checkpoints that go with it.

    Attributes:
        name (str): What the page calls it.
        config (Path): The config.
        checkpoints (tuple[Path]): Its checkpoints, the one to take first.
    """

    name: str
    config: Path
    checkpoints: tuple[Path, ...]

    def checkpoint(self, name: str) -> Path:
        """The checkpoint of that file name.

        Raises:
            MissingFileError: It has none.
        """
        for path in self.checkpoints:
            if path.name == name:
                return path
        raise MissingFileError(f'{self.name} has no checkpoint {name!r}')


def find_models(work_dirs: str | Path, named: Sequence[tuple[str, str]] = ()) -> list[ModelChoice]:
    """All detectors and segmentors that there are.

    Args:
        work_dirs (str | Path): Its folders are searched for a config beside checkpoints, as
            trainings leave them.
        named (Sequence[tuple[str, str]]): More, as config (path or name) and checkpoint; they come
            first.

    Returns:
        list[ModelChoice]: Those named, the model of ``make demo``, then the others by name.

    Raises:
        MissingFileError: There is none, or one that is named is not there.
    """
    found = []
    for config, checkpoint in named:
        path = user_path(checkpoint)
        if not path.is_file():
            raise MissingFileError(f'checkpoint {checkpoint} does not exist')
        name = f'{Path(config).stem} ({path.absolute().parent.name}/{path.name})'
        same = sum(model.name.startswith(name) for model in found)
        name += f' {same + 1}' if same else ''
        found.append(ModelChoice(name, find_config(config), (path,)))
    root = Path(work_dirs)
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    for folder in sorted(folders, key=lambda p: p.name != DEMO):
        checkpoints = _checkpoints(folder)
        for config in sorted(folder.glob('*.py')) if checkpoints else ():
            if _scope(config) in ('mmdet', 'mmseg'):
                found.append(ModelChoice(f'{folder.name}: {config.stem}', config, checkpoints))
    if not found:
        raise MissingFileError(
            f'no trained detector or segmentor in {root}: run `make demo` first, or give --model '
            'CONFIG CHECKPOINT'
        )
    return found


def _checkpoints(folder: Path) -> tuple[Path, ...]:
    """The last one first, then the best, then the others, newest first."""
    last = folder / 'last_checkpoint'
    last_name = Path(last.read_text(errors='replace').strip()).name if last.is_file() else ''

    def rank(path: Path) -> tuple:
        number = int((re.findall(r'\d+', path.stem) or ['0'])[-1])
        return path.name != last_name, not path.name.startswith('best'), -number, path.name

    # Hidden ones are being written.
    return tuple(sorted((p for p in folder.glob('*.pth') if p.name[0] != '.'), key=rank))


def _scope(config: Path) -> str | None:
    """What a written config says, without running it."""
    try:
        text = config.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError):  # somebody's own file, no config that a training wrote
        return None
    said = re.search(r"^default_scope = '(\w+)'", text, re.MULTILINE)
    return said[1] if said else None
