"""Runs tools in copies of a process that has imported them and the toolboxes, which takes 5 s.

Each line of the input is a job: ``argv``, ``cwd``, ``env``, and ``output``, a file for all that is
printed. Each line of the output is the exit code of one.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import sys
import threading
import traceback
from pathlib import Path

answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)  # what the imports print

MODULES = """
    cv2 pandas scipy.stats mmengine.runner mmcv.ops mmdet.apis mmseg.apis mmpretrain.apis
    mmdet.models mmseg.models mmpretrain.models cyclemlp_mm.apis.train cyclemlp_mm.apis.test
    cyclemlp_mm.apis.infer cyclemlp_mm.datasets.shapes"""
for module in MODULES.split():
    with contextlib.suppress(ImportError):
        importlib.import_module(module)

gc.freeze()  # or each copy would write to all of it
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
        continue
    with open(job['output'], 'wb') as output, open(os.devnull, 'rb') as nothing:
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source.fileno(), target)
    os.environ.clear()
    os.environ.update(job['env'])
    os.chdir(job['cwd'])
    sys.argv = job['argv']
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # The interpreter is not taken down, which would copy all of the parent's memory: 1.2 s.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
