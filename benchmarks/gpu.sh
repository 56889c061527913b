#!/usr/bin/env bash
# All that has to be asked of a GPU machine, in one command and without network: benchmarks/gpu.sh OUT_FOLDER [--quick]
# Needs python3 with torch, pytest, pytest-benchmark and hypothesis, a C++ compiler, cmake, pybind11 and
# nvcc. Each stage has its own time limit and ends up in OUT_FOLDER/summary.json, also when it fails; all together stay
# below 9 minutes (3 with --quick). Exit code 1 if a stage failed. PYTHON=... chooses the interpreter.
set -uo pipefail

usage="usage: benchmarks/gpu.sh OUT_FOLDER [--quick]"
out=${1:?$usage}
quick=${2:-}
if [[ $# -gt 2 || $out == -* || ( -n $quick && $quick != --quick ) ]]; then
  echo "$usage" >&2
  exit 2
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
rm -f "$out/summary.json"
failed=0

# stage NAME SECONDS COMMAND...: the command's output goes to the screen and to OUT/NAME.log.
stage() {
  local name=$1 limit=$2 begin end status
  shift 2
  echo "== $name (at most $limit s)"
  begin=$(date +%s.%N)
  # INT first: pytest then still reports, and saves the benchmarks done so far.
  timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  end=$(date +%s.%N)
  [[ $status -eq 0 || $status -eq 77 ]] || failed=1
  "$python" - "$out/summary.json" "$name" "$status" "$begin" "$end" "$limit" <<'PY'
import json, os, sys

path, name, status, begin, end, limit = sys.argv[1:]
stages = json.load(open(path)) if os.path.exists(path) else []
words = {0: "passed", 77: "not there", 124: "timed out", 137: "timed out"}
stages.append({"stage": name, "status": words.get(int(status), "failed"), "exit_code": int(status),
               "seconds": round(float(end) - float(begin), 1), "limit_s": int(limit)})
with open(path + ".part", "w") as file:
    json.dump(stages, file, indent=2)
os.replace(path + ".part", path)
PY
}

header() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || echo "nvidia-smi: not there"
  "$python" -c 'import sys; print("python", sys.version.split()[0], sys.executable)'
  "$python" -c 'import torch; print("torch", torch.__version__, "cuda", torch.version.cuda)'
  "$python" -c 'import triton; print("triton", triton.__version__)' || true
  { nvcc --version || /usr/local/cuda/bin/nvcc --version; } 2>/dev/null | grep release || echo "nvcc: not there"
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown), $(git status --porcelain 2>/dev/null | wc -l) files changed"
}

install() {
  local arguments=(-m pip install --no-build-isolation --no-deps -e .)
  # Some distributions refuse to install beside their own packages unless told so.
  "$python" "${arguments[@]}" || "$python" "${arguments[@]}" --break-system-packages
}

# The CUDA C++ alone: Triton and torch have sanitizers of their own. Caching allocators hide what is out of bounds.
sanitize() {
  local tool checker
  checker=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  [[ -n $checker ]] || { echo "compute-sanitizer: not there"; return 77; }
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$checker" --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest tests/ops/test_nms.py tests/ops/test_native_proposals.py -m gpu -x -q --color=no \
      -k "cuda and not compile" || return
  done
}

# timeout runs programs, not functions: hand them to a fresh bash.
export -f header install sanitize
export python

if [[ $quick ]]; then
  limits=(15 50 40 20 30 15)
  tests=(-m "gpu and not slow")
  benchmarks=(--benchmark-max-time=0.1 --benchmark-min-rounds=3 -m "not slow")
else
  limits=(30 120 130 90 30 70 60)
  tests=(-m gpu)
  benchmarks=()
fi

stage header "${limits[0]}" bash -c header
stage install "${limits[1]}" bash -c install
# Most important first. A file that cannot be collected (a missing package) must not hide the others.
stage tests "${limits[2]}" "$python" -m pytest tests "${tests[@]}" --color=no --continue-on-collection-errors
stage gpu_targets "${limits[3]}" "$python" benchmarks/gpu_targets.py "$out" ${quick:+"$quick"}
stage gpu_first "${limits[4]}" "$python" benchmarks/gpu_first.py "$out" ${quick:+"$quick"}
stage benchmarks "${limits[5]}" "$python" -m pytest benchmarks ${benchmarks[@]+"${benchmarks[@]}"} --color=no \
  --continue-on-collection-errors --benchmark-json="$out/benchmarks.json"
if [[ -z $quick ]]; then stage sanitize "${limits[6]}" bash -c sanitize; fi

echo "== summary ($out)"
"$python" - "$out/summary.json" <<'PY'
import json, sys

for s in json.load(open(sys.argv[1])):
    print(f"{s['stage']:<12} {s['status']:<10} {s['seconds']:>7.1f} s of {s['limit_s']} s")
PY
exit "$failed"
