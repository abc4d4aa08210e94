# The tested environment in an image, made by `make setup`. From the folder of this file:
#   docker build -t cyclemlp_mm .
#   docker run -it cyclemlp_mm make demo
# With mmcv's ops for GPUs (CUDA of the version that the pinned PyTorch is built for):
#   docker build -t cyclemlp_mm:cuda --build-arg FORCE_CUDA=1 \
#       --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 .
#   docker run -it --gpus all --shm-size 8g cyclemlp_mm:cuda
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace/cyclemlp_mm
COPY . .
# Variables of mmcv's build: no GPU is visible here, so it has to be told for which ones.
ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST="8.0 8.6 8.9 9.0+PTX"
RUN PIP_NO_CACHE_DIR=1 make setup && rm -rf ~/.cache

ENV PATH=/workspace/cyclemlp_mm/.venv/bin:$PATH
CMD ["bash"]
