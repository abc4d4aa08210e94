#!/usr/bin/env bash
# The tests that matter, under the original OpenMMLab packages, in an environment of their own.
#
# usage: [PYTHON=python3.10] bash tests/legacy.sh [arguments of pytest]
#
# .venv-legacy gets torch 2.1.2, mmcv 2.1.0 (compiled: half an hour of CPU time, once), mmdet
# 3.3.0, mmsegmentation 1.2.2, mmpretrain 1.2.0 and mmengine 0.10.7, for Python 3.10 or 3.11.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv-legacy
python=$venv/bin/python
hold=$venv/hold.txt

if [ ! -f "$venv/ready" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' || {
        echo 'error: torch 2.1.2 needs Python 3.10 or 3.11: PYTHON=python3.10 make test-legacy' >&2
        exit 2
    }
    "${PYTHON:-python3}" -m venv --clear "$venv"
    # Every step holds these two back, or a later one lifts numpy: 'Numpy is not available'.
    printf '%s\n' 'numpy==1.26.4' 'opencv-python==4.11.0.86' 'opencv-python-headless==4.11.0.86' \
        'setuptools<70' > "$hold"
    pip() { "$python" -m pip install --quiet -c "$hold" "$@"; }
    pip 'setuptools<70' wheel ninja psutil packaging numpy
    pip torch==2.1.2 torchvision==0.16.2
    CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0 pip --no-build-isolation mmcv==2.1.0
    "$python" -c 'import mmcv.ops' # else it was built without torch
    pip --no-build-isolation mmengine==0.10.7 mmdet==3.3.0 mmsegmentation==1.2.2 \
        mmpretrain==1.2.0 pytest pytest-timeout pytest-xdist hypothesis
    pip --no-build-isolation -e "$root[openmmlab-det,openmmlab-seg,openmmlab-cls]"
    touch "$venv/ready"
fi
cd "$root"
export OMP_NUM_THREADS=1
exec "$python" -m pytest -p no:cacheprovider -n auto --maxprocesses 4 --dist loadfile \
    tests/models tests/ops tests/weights tests/engine tests/apis tests/configs tests/datasets "$@"
