#!/bin/sh
# Everything for a machine with a GPU, in less than nine minutes: builds for this GPU, runs the tests marked gpu,
# looks for invalid memory accesses, measures. A step that fails does not keep the others from running, and the exit
# status tells of it. Results and gpu.log, with all output, go to the folder OUT if that is set, else to
# benchmarks/results. PYTHON is the interpreter (python3): it needs torch, triton, pybind11 and pytest. nvcc has to
# be there; nothing is downloaded.
#
#   benchmarks/gpu.sh            the above
#   benchmarks/gpu.sh --quick    what is measured, on tiny tensors of the CPU: does everything run?
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
start=$(date +%s)
status=0
# Seconds for everything, the most for measuring, and the least for writing the results.
limit=520 most=330 writing=25

case ${1:-} in
    '') device=cuda ;;
    --quick) device=cpu ;;
    *) echo "usage: benchmarks/gpu.sh [--quick]" >&2; exit 2 ;;
esac
if [ "$device" = cuda ]; then
    "$python" - <<'CHECK' || exit 1
import sys

try:
    import torch
except ImportError:
    sys.exit("benchmarks/gpu.sh: error: PyTorch is not installed; PYTHON names the interpreter that has it")
if not torch.cuda.is_available():
    sys.exit("benchmarks/gpu.sh: error: PyTorch finds no GPU here; `sparsekern env` says what it does find")
CHECK
fi
mkdir -p "$out" || exit 1
log=$out/gpu.log
step_log=$(mktemp) || exit 1
trap 'rm -f "$step_log"' EXIT
: >"$log"

say() {
    echo "$@" | tee -a "$log"
}

# step NAME SECONDS COMMAND...: runs a command for so long at most; its output goes to the log, its end to the screen.
step() {
    name=$1 seconds=$2
    shift 2
    began=$(date +%s)
    timeout -s INT -k 10 "$seconds" "$@" >"$step_log" 2>&1
    code=$?
    { echo "== $name: $*"; cat "$step_log"; } >>"$log"
    if [ "$code" -ne 0 ]; then
        status=1
        tail -n 25 "$step_log"
    fi
    say "-- $name: $(($(date +%s) - began)) s, status $code"
    return "$code"
}

if [ "$device" = cuda ]; then
    arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
    pip="$python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e ."
    # Without its CUDA kernels there is still much to measure.
    step "build for sm_$arch" 150 env SPARSEKERN_CUDA=1 SPARSEKERN_CUDA_ARCHS="$arch" $pip ||
        step "build without CUDA" 120 env SPARSEKERN_CUDA=0 $pip
    step "environment" 30 "$python" -m sparsekern env
    # Compiling takes most of the time, and goes on in several processes where there is pytest-xdist.
    workers=
    "$python" -c 'import xdist' 2>/dev/null && workers="-n 8"
    # Only folders that need no more than torch, numpy and pytest to be read.
    step "tests" 150 "$python" -m pytest -q -m gpu --maxfail=20 $workers \
        tests/gpu tests/nn tests/ops tests/test_backends.py
    if command -v compute-sanitizer >/dev/null; then
        # Each tensor has memory of its own, so that its end is noticed.
        step "memcheck" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
            --error-exitcode 9 --target-processes all "$python" -m pytest -q -m gpu tests/gpu/test_small.py
    else
        say "-- memcheck: compute-sanitizer is not here"
    fi
    left=$((limit - writing - ($(date +%s) - start)))
    [ "$left" -gt "$most" ] && left=$most
    step "measuring for $left s" $((left + writing)) "$python" -m benchmarks --device cuda --seconds-total "$left" \
        --output "$out"
    "$python" -m benchmarks bars --device cuda --output "$out" | tee -a "$log"
else
    step "measuring" 200 "$python" -m benchmarks gpu-memory gpu-training gpu --quick --output "$out"
    "$python" -m benchmarks bars --quick --output "$out" | tee -a "$log"
fi
say "$(($(date +%s) - start)) s in all; everything is in $log"
exit "$status"
