#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Everything over several GPUs, unattended: for owners of a machine with two or more of them.
#
# Works from the tree with the active Python (PYTHON=... for another), which must have pyparareal, a torch built with
# NCCL, and pytest. Writes to $OUT (default bench/results/multi_gpu):
#   multi_gpu.json   the cases of suite multi_gpu: the same bits on 1 to all GPUs, strong scaling, against pipelining
#   topology.txt     how the GPUs are connected, driver, versions
#   tests.log        the tests with several processes, on the CPUs of this machine
#   torchrun.log     the examples with a process for each GPU
# A stage that fails does not stop the later ones; the exit status is 1 unless all passed.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
out=${OUT:-bench/results/multi_gpu}
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
if ((gpus < 2)); then
  echo "multi_gpu.sh: needs at least 2 GPUs, nvidia-smi lists $gpus" >&2
  exit 2
fi
mkdir -p "$out"
rm -f "$out/multi_gpu.json" # an old result must not outlive a run that dies
failed=()

stage() { # stage NAME LOG LIMIT COMMAND...
  local name=$1 log=$2 limit=$3 begin=$SECONDS status
  shift 3
  timeout --kill-after=10 "$limit" "$@" >>"$out/$log" 2>&1
  status=$?
  ((status == 0)) || failed+=("$name")
  printf '%-22s exit %3d  %5d s  (%s)\n' "$name" "$status" $((SECONDS - begin)) "$log"
}

: >"$out/topology.txt" && : >"$out/tests.log" && : >"$out/torchrun.log" && : >"$out/suite.log"
stage topology topology.txt 60 nvidia-smi topo -m
stage versions topology.txt 120 "$python" -c "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.nccl.version())"
stage tests tests.log 1800 "$python" -m pytest -q -p no:cacheprovider tests/runtime tests/nn/ranks
for example in examples/ranks_*.py; do
  stage "$(basename "$example" .py)" torchrun.log 600 "$python" -m torch.distributed.run --standalone --max-restarts 3 \
    --nproc-per-node "$gpus" "$example"
done
stage suite suite.log 3600 "$python" bench/run.py --progress --suite multi_gpu --json "$out/multi_gpu.json"

echo "total $SECONDS s, results in $out"
((${#failed[@]} == 0)) || echo "failed: ${failed[*]}"
((${#failed[@]} == 0))
