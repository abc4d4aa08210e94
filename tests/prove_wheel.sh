#!/usr/bin/env bash
# Installs the wheel with all extras into an empty environment, from scratch, and trains with it
# from another folder, then by mim. Takes minutes; `make prove-wheel` runs it. mmcv's ops come from
# pip's cache where they were compiled before.
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

say 'use it with mim'
"$place/venv/bin/python" -m pip install --quiet openmim==0.3.9 'setuptools<81'
export PATH="$place/venv/bin:$PATH"
small=(model.backbone.arch.depths='(1,1,1,1)' model.backbone.arch.widths='(8,64,128,192)'
    train_cfg.max_epochs=1 train_dataloader.batch_size=1 train_dataloader.num_workers=0
    train_dataloader.persistent_workers=False val_dataloader.num_workers=0
    val_dataloader.persistent_workers=False test_dataloader.num_workers=0
    test_dataloader.persistent_workers=False)
said() { # a command, and what its output must hold
    local expected=$1 output
    shift
    output=$("$@" 2>&1) || { echo "$output"; exit 1; }
    grep -q "$expected" <<<"$output" || { echo "$output"; echo "no '$expected' in that"; exit 1; }
    echo "$*: ok"
}
said retinanet_cyclemlp_b1_fpn_1x_coco mim search cyclemlp_mm --valid-config
said cyclemlp_b1_in1k mim search cyclemlp_mm --model cyclemlp --field parameters flops
said multiply-adds mim run cyclemlp_mm get_flops --arch b1
said 'epoch_1.pth' mim train cyclemlp_mm retinanet_cyclemlp_demo.py --gpus 0 --data data \
    --work-dir mim_run --cfg-options "${small[@]}"
said 'Epoch(test)' mim test cyclemlp_mm retinanet_cyclemlp_demo.py \
    --checkpoint mim_run/epoch_1.pth --gpus 0 --data data --cfg-options "${small[@]}"
said 'Training finished' mim train onedl-mmdetection mim_run/retinanet_cyclemlp_demo.py --gpus 0 \
    --work-dir mmdet_run
ls mmdet_run/epoch_1.pth
say 'done'
