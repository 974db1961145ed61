#!/usr/bin/env bash
# What needs a GPU: the scan's paths against each other, the tests that carry the gpu marker, and the cost of the
# encoders and of a full step. It has not been run on a GPU yet.
#
#   benchmarks/gpu.sh                       # from the checkout, in an environment with torch for CUDA
#   MAMBA_SOURCES=DIR benchmarks/gpu.sh     # first build causal-conv1d and mamba-ssm from the source packages in DIR
#
# A plain build of mamba-ssm has no Mamba-1 kernel since July 2026: MAMBA_KEEP_CUDA_BUILD keeps it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD

python -c 'import torch; assert torch.cuda.is_available(), "torch sees no CUDA device"; print(torch.cuda.get_device_name())'

if [ -n "${MAMBA_SOURCES:-}" ]; then
    capability=$(python -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
    export TORCH_CUDA_ARCH_LIST=$capability MAX_JOBS="${MAX_JOBS:-8}"
    export CAUSAL_CONV1D_FORCE_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE
    python -m pip install --no-build-isolation --no-deps "$MAMBA_SOURCES"/causal_conv1d-*.tar.gz
    python -m pip install --no-build-isolation --no-deps "$MAMBA_SOURCES"/mamba_ssm-*.tar.gz
fi

python -c 'from mgi.model.scan import describe_path; print("scan on CUDA:", describe_path("cuda"))'
python -m pytest -m gpu
python benchmarks/encoders.py --device cuda --batch 8 --dim 128 --depth 4
python benchmarks/gpu_step.py
