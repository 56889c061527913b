#!/usr/bin/env bash
# All that has to be asked of a GPU machine, in one command and without network: benchmarks/gpu.sh OUT_FOLDER [--quick]
# Needs python3 with torch, pytest, pytest-benchmark and hypothesis, a C++ compiler, cmake, pybind11 and
# nvcc. Each stage has its own time limit and ends up in OUT_FOLDER/summary.json, also when it fails; all together stay
# below 9 minutes (3 with --quick). OUT_FOLDER, copied to benchmarks/results/<gpu>, is what benchmarks.report reads.
# Exit code 1 if a stage failed. PYTHON=... chooses the interpreter.
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
      "$python" -m pytest tests/ops/test_native_nms.py tests/ops/test_nms.py tests/ops/test_native_proposals.py -m gpu -x -q \
      --color=no -k "cuda and not compile" || return
  done
}

# From features to mAP as a user does it, on synthetic videos as many and as long as THUMOS14's.
thumos() {
  local folder status
  folder=$(mktemp -d)
  "$python" -m case synth "$folder/data" --size thumos14 \
    && "$python" -m case train --data "$folder/data" --output "$folder/run" --max-steps 200 --eval-every 0 --pictures 0
  status=$?
  cp "$folder"/run/{metrics.jsonl,results.json} "$out" 2>/dev/null
  rm -rf "$folder"
  return "$status"
}

# timeout runs programs, not functions: hand them to a fresh bash.
export -f header install sanitize thumos
export python out

if [[ $quick ]]; then
  limits=(10 50 35 20 10 25 25)
  tests=(-m "gpu and not slow")
  export CASE_BENCH_SECONDS=0.05
else
  limits=(10 110 110 65 20 30 65 15 40 15 25 30)
  tests=(-m gpu)
  export CASE_BENCH_SECONDS=0.2
fi
pytest=("$python" -m pytest --color=no --continue-on-collection-errors)
# A file that cannot be collected (a missing package) must not hide the others. Most important first.
benches=(benchmarks/bench_{sinkhorn,losses,nms,prototypes,proposals,cosine,pooling}.py -k cuda)

stage header "${limits[0]}" bash -c header
stage install "${limits[1]}" bash -c install
stage tests "${limits[2]}" "${pytest[@]}" tests "${tests[@]}"
stage gpu_targets "${limits[3]}" "$python" -m benchmarks.gpu_targets "$out" ${quick:+"$quick"}
stage gpu_first "${limits[4]}" "$python" benchmarks/gpu_first.py "$out" ${quick:+"$quick"}
stage train "${limits[5]}" "${pytest[@]}" benchmarks/bench_train.py -k "cuda or same" --benchmark-json="$out/train.json"
stage benchmarks "${limits[6]}" "${pytest[@]}" "${benches[@]}" -m "not slow" --benchmark-json="$out/ops.json"
if [[ -z $quick ]]; then
  stage limits "${limits[7]}" "$python" -m benchmarks.limits "$out"
  stage thumos14 "${limits[8]}" bash -c thumos
  stage profile "${limits[9]}" "$python" -m benchmarks.bench_train "$out"
  stage large "${limits[10]}" "${pytest[@]}" "${benches[@]}" -m slow --benchmark-json="$out/large.json"
  stage sanitize "${limits[11]}" bash -c sanitize
fi

echo "== summary ($out)"
"$python" - "$out/summary.json" <<'PY'
import json, sys

for s in json.load(open(sys.argv[1])):
    print(f"{s['stage']:<12} {s['status']:<10} {s['seconds']:>7.1f} s of {s['limit_s']} s")
PY
exit "$failed"
