#!/usr/bin/env bash
# Installs the wheel with all extras into an empty environment, from scratch, and trains with it
# from another folder. Takes minutes; `make prove-wheel` runs it. mmcv's ops come from pip's cache
# where they were compiled before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
python=${PYTHON:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
begun=$SECONDS

say() { echo "== $((SECONDS - begun)) s: $*"; }

say 'build the wheel'
mkdir "$place/source"
git ls-files -z --cached --others --exclude-standard |
    tar --null --files-from=- --ignore-failed-read -cf - | tar -xf - -C "$place/source"
"$root/.venv/bin/python" -m build --no-isolation --outdir "$place/dist" "$place/source" \
    >"$place/build.log" || { tail -n 30 "$place/build.log"; exit 1; }

say 'make an empty environment'
"$python" -m venv "$place/venv"
pip=("$place/venv/bin/python" -m pip install --quiet -c "$root/constraints.txt")
export PIP_DISABLE_PIP_VERSION_CHECK=1
"${pip[@]}" --upgrade pip
"${pip[@]}" setuptools wheel packaging ninja psutil

say 'install torch, which the ops are compiled against'
"${pip[@]}" torch torchvision numpy
"${pip[@]}" --no-build-isolation onedl-mmcv

say 'install the wheel with all extras'
"${pip[@]}" --no-build-isolation "$(echo "$place"/dist/*.whl)[all]"
"${pip[@]}" --force-reinstall --no-deps opencv-python-headless
"$place/venv/bin/python" -m pip check

say 'use it from another folder'
mkdir "$place/elsewhere"
cp tests/wheel_check.py "$place/elsewhere"
cd "$place/elsewhere"
env -u PYTHONPATH "$place/venv/bin/python" wheel_check.py "$place/venv"
say 'done'
