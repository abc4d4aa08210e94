"""Reads every file of a folder and writes what came of it; a script, run apart from the tests.

    python read_hostile.py FOLDER MODEL.pth

Each file is loaded by ``init_cfg`` into the model that MODEL.pth holds, and by mmengine's loader.
Prints a line of JSON a file: its name, the error or null, the seconds of CPU time, and
whether the model has the values of MODEL.pth. The address space is limited,
so that a large allocation is seen, too.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from mmengine.runner.checkpoint import CheckpointLoader

import cyclemlp_mm.safe_loading  # noqa: F401
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models import CycleMLP
from cyclemlp_mm.weights.cyclemlp import arch_of

MORE_ADDRESSES = 1 << 29


def load(path, arch):
    model = CycleMLP(arch, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    return model.state_dict()


def main():
    expected = torch.load(sys.argv[2])
    arch = arch_of(expected)
    load(sys.argv[2], arch)  # what is imported late is imported now
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_ADDRESSES, used + MORE_ADDRESSES))
    for path in sorted(Path(sys.argv[1]).iterdir()):
        start = time.process_time()
        errors, loaded = [], None
        for read in (lambda p: load(p, arch), CheckpointLoader.load_checkpoint):
            try:
                content = read(str(path))
                loaded = content if loaded is None else loaded
                errors.append(None)
                del content
            except CheckpointError as error:
                errors.append(str(error))
        same = errors[0] is None and all(
            torch.equal(loaded[name], tensor) for name, tensor in expected.items()
        )
        result = dict(
            name=path.name,
            error=errors[0],
            mmengine=errors[1],
            seconds=time.process_time() - start,
            same=same,
            size=path.stat().st_size,
        )
        print(json.dumps(result), flush=True)
        loaded = None


if __name__ == '__main__':
    main()
