#!/usr/bin/env bash
# All that has to be asked of a GPU machine, in one command and without network: benchmarks/gpu.sh OUT_FOLDER [--quick]
# Needs python3 with torch, pytest, pytest-benchmark, hypothesis and setuptools, a C++ compiler, cmake, pybind11 and nvcc.
# Each stage has its own time limit and is in OUT_FOLDER/summary.json as soon as it ends, also when it fails; all together
# stay below 9 minutes (3 with --quick). OUT_FOLDER, copied to benchmarks/results/<gpu>, is what benchmarks.report reads.
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
total=540
[[ $quick ]] && total=180
turn=0 besides=()

# stage NAME SECONDS COMMAND...: the command's output goes to the screen and to OUT/NAME.log.
stage() {
  run "$@"
  turn=$((turn + 1))
}

# beside NAME SECONDS COMMAND...: as stage, at the same time as others of its kind until `together`, which shows how each
# of them ended. Only for what is not timed.
beside() {
  echo "== $1, beside others (at most $2 s)"
  besides+=("$1")
  run "$@" > /dev/null &
}

together() {
  local name
  wait
  for name in "${besides[@]}"; do
    echo "== end of $name"
    tail -n 30 "$out/$name.log"
  done
  turn=$((turn + 1)) besides=()
}

run() {
  local name=$1 limit=$2 left=$((total - SECONDS - 2)) begin status
  shift 2
  # A stage that had to be killed has taken more than its limit.
  limit=$((limit < left ? limit : left))
  echo "== $name (at most $limit s)"
  begin=$(date +%s.%N)
  if [[ $limit -gt 0 ]]; then
    # INT first: pytest then still reports, and saves the benchmarks done so far. What a shell starts in the background
    # ignores it unless told otherwise.
    env --default-signal=INT timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
  else
    echo "no time left" | tee "$out/$name.log"
    status=124
  fi
  "$python" - "$out/summary.json" "$name" "$status" "$begin" "$(date +%s.%N)" "$limit" "$turn" <<'PY'
import fcntl, json, os, sys

path, name, status, begin, end, limit, turn = sys.argv[1:]
words = {0: "passed", 76: "fallback", 77: "not there", 124: "timed out", 137: "timed out"}
fcntl.flock(os.open(os.path.dirname(path), os.O_RDONLY), fcntl.LOCK_EX)  # stages may end at the same time
stages = json.load(open(path)) if os.path.exists(path) else []
stages.append({"stage": name, "status": words.get(int(status), "failed"), "exit_code": int(status),
               "seconds": round(float(end) - float(begin), 1), "limit_s": int(limit), "turn": int(turn)})
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

# For this machine's GPUs alone, as a rule one architecture in place of six. Exit code 76, which pytest does not use, where
# less than all of it could be built: the stages that follow then ask what is left to ask.
install() {
  local archs
  archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$' | sort -u \
    | sed 's/\.//; s/$/-real/' | paste -sd ';')
  # The second: some distributions refuse to install beside their own packages unless told so.
  export CASE_CUDA_ARCHS=$archs PIP_BREAK_SYSTEM_PACKAGES=1
  local pip=("$python" -m pip install --no-index --disable-pip-version-check --no-build-isolation --no-deps -e .)
  CASE_BUILD_CUDA=1 timeout "$1" "${pip[@]}" && return
  echo "install: the CUDA half does not build, going on without it"
  CASE_BUILD_CUDA=0 timeout "$2" "${pip[@]}" && return 76
  echo "install: the native module does not build, going on without it"
  CASE_BUILD_NATIVE=0 "${pip[@]}" && return 76
}

# The CUDA C++ alone: Triton and torch have sanitizers of their own. Caching allocators hide what is out of bounds, and
# without them nothing can be allocated in a capture.
sanitize() {
  local checker
  checker=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  [[ -n $checker ]] || { echo "compute-sanitizer: not there"; return 77; }
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$checker" --tool "$1" --error-exitcode 9 --target-processes all \
    "$python" -m pytest tests/ops/test_native_nms.py tests/ops/test_native_proposals.py tests/ops/test_nms.py \
    tests/ops/test_proposals.py -m gpu -x -q -W default --color=no -p no:cacheprovider \
    -k "not compile and not large and not captured and not reference"
}

# timeout runs programs, not functions: hand them to a fresh bash.
export -f header install sanitize
export python out

# pyproject.toml makes warnings errors, which are other ones with every version of torch.
options=(-W default --color=no)
pytest=("$python" -m pytest "${options[@]}" --continue-on-collection-errors)
# First what everything else rests on: kernels in graphs, the captured step, the CUDA C++. A file that cannot be collected
# (a missing package) must not hide the others; each is a process of its own.
first=(tests/ops/test_cuda_graph.py tests/test_engine_fast.py tests/test_engine.py tests/test_many.py tests/ops/test_native_*.py)
large=tests/ops/test_at_scale.py
rest=()
for file in tests/test_*.py tests/ops/test_*.py; do
  [[ " ${first[*]} $large " == *" $file "* ]] || rest+=("$file")
done
benches=(benchmarks/bench_{sinkhorn,losses,nms,prototypes,proposals,cosine,pooling}.py -k cuda)
side_by_side=("$python" -m benchmarks.side_by_side)
chosen=(-- -m "gpu and not slow" "${options[@]}")

if [[ $quick ]]; then
  limits=(10 50 40 20 10 25 20)
  builds=(35 10)
  export CASE_BENCH_SECONDS=0.05
else
  limits=(15 85 60 40 15 40 60)
  builds=(60 15)
  export CASE_BENCH_SECONDS=0.2
fi

# Most important first.
stage header "${limits[0]}" bash -c header
stage install "${limits[1]}" bash -c "install ${builds[*]}"
stage tests_first "${limits[2]}" "${side_by_side[@]}" "$out/tests_first" "${#first[@]}" "${first[@]}" "${chosen[@]}"
stage gpu_targets "${limits[3]}" "$python" -m benchmarks.gpu_targets "$out" ${quick:+"$quick"}
stage gpu_first "${limits[4]}" "$python" -m benchmarks.gpu_first "$out" ${quick:+"$quick"}
stage train "${limits[5]}" "${pytest[@]}" benchmarks/bench_train.py -k "cuda or same" --benchmark-json="$out/train.json"
stage benchmarks "${limits[6]}" "${pytest[@]}" "${benches[@]}" -m "not slow" --benchmark-json="$out/ops.json"
if [[ -z $quick ]]; then
  beside tests_rest 80 "${side_by_side[@]}" "$out/tests_rest" 6 "${rest[@]}" "${chosen[@]}"
  beside memcheck 80 bash -c "sanitize memcheck"
  beside racecheck 80 bash -c "sanitize racecheck"
  beside at_scale 80 "${pytest[@]}" "$large" -m gpu
  together
  stage limits 30 "$python" -m benchmarks.limits "$out"
  stage thumos14 40 "$python" -m benchmarks.thumos14 "$out"
  stage profile 20 "$python" -m benchmarks.bench_train "$out"
  stage compiled 30 "$python" -m benchmarks.gpu_targets "$out" --compiled
  stage large 20 "${pytest[@]}" "${benches[@]}" -m slow --benchmark-json="$out/large.json"
fi

echo "== summary ($out)"
"$python" - "$out/summary.json" <<'PY'
import json, sys

stages = json.load(open(sys.argv[1]))
for s in stages:
    print(f"{s['stage']:<12} {s['status']:<10} {s['seconds']:>7.1f} s of {s['limit_s']} s")
sys.exit(any(s["status"] not in ("passed", "not there") for s in stages))
PY
