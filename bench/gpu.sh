#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# `make gpu`: build for sm_90, GPU tests, compute-sanitizer, gpu suite; under 9 minutes, no network.
#
# Works from a plain copy of the tree with the active Python (PYTHON=... for another), which must hold
# setuptools, pybind11, Cython, NumPy, torch or CuPy, pytest and hypothesis; nvcc is looked up as setup.py
# does. Set PYPARAREAL_COMMIT where there is no git. Writes to $OUT (default bench/results), six files:
#   gpu_run.json (read by gpu_ledger.py)  gpu_suite.json  build.log  tests.log  memcheck.log  racecheck.log
# A stage that fails does not stop the later ones; the exit status is 1 unless all passed.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
out=${OUT:-bench/results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PYPARAREAL_CUDA=1 PYPARAREAL_CUDA_ARCHS=${PYPARAREAL_CUDA_ARCHS:-90} MAX_JOBS=${MAX_JOBS:-$(nproc)}
deadline=520 # seconds for all stages: 9 minutes less the record and a slow start
stages=()
rm -f "$out/gpu_run.json" "$out/gpu_suite.json" # an old verdict must not outlive a run that dies

# stage NAME LIMIT COMMAND...: runs within LIMIT seconds and the time left, logs to NAME.log, records the status.
stage() {
  local name=$1 limit=$2 begin=$SECONDS left=$((deadline - SECONDS)) status
  shift 2
  limit=$((left < limit ? left : limit))
  if ((limit <= 0)); then
    status=124
    echo "no time left" >"$out/$name.log"
  else
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
  fi
  stages+=("$name=$status:$((SECONDS - begin))")
  printf '%-10s exit %3d  %4d s  (limit %d s)\n' "$name" "$status" $((SECONDS - begin)) "$limit"
  ((status == 0)) || tail -n 15 "$out/$name.log" | sed 's/^/    /'
}

sanitized() {
  # Without the caching allocator each array is an allocation of its own, so one element past its end is seen.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 99 --print-limit 20 \
    "$python" bench/sanitize_cases.py
}
export -f sanitized
export python

stage build 200 "$python" setup.py build_ext --inplace
stage tests 150 "$python" -m pytest -m gpu -q -p no:cacheprovider --junitxml="$scratch/tests.xml" tests
stage memcheck 70 bash -c 'sanitized memcheck'
stage racecheck 70 bash -c 'sanitized racecheck'
stage suite 240 "$python" bench/run.py --progress --suite gpu --json "$out/gpu_suite.json"
mv "$out/suite.log" "$scratch/" # progress only; the results are in gpu_suite.json

"$python" bench/gpu_record.py "$out/gpu_run.json" "${stages[@]}" --junit "$scratch/tests.xml"
status=$?
echo "total $SECONDS s, results in $out"
exit $status
