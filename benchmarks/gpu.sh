#!/bin/sh
# Everything for a machine with a GPU: builds with CUDA, runs the tests marked gpu, measures.
# Results go to the folder OUT if that is set, else to benchmarks/results. PYTHON is the interpreter (python3). It
# needs torch, triton, pybind11 and pytest, and nvcc has to be there; nothing is downloaded.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" - <<'CHECK'
import sys

try:
    import torch
except ImportError:
    sys.exit("benchmarks/gpu.sh: error: PyTorch is not installed; PYTHON names the interpreter that has it")
if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.sh: error: PyTorch finds no GPU here; `sparsekern env` says what it does find")
CHECK

SPARSEKERN_CUDA=1 "$python" -m pip install --quiet --no-build-isolation --no-deps -e .

# Figures are worth having even where a test fails; the exit status still tells.
status=0
"$python" -m pytest -q -m gpu || status=$?
"$python" -m benchmarks --device cuda --output "${OUT:-benchmarks/results}" || status=$?
exit "$status"
