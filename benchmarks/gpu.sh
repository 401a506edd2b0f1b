#!/usr/bin/env bash
# benchmarks/gpu.sh OUT_DIR: everything worth doing when a GPU is at hand, under 9 minutes, no network, no install.
# Needs torch, triton, pytest and what `ecliptica` imports. Each part has its own time limit and its own line in OUT_DIR/summary.md;
# a part that fails does not stop the next. Exit code 1 if one failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?"usage: benchmarks/gpu.sh OUT_DIR"}
mkdir -p "$out"
export PYTHONPATH=. TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$out/triton-cache}"
unset TRITON_INTERPRET
python=${PYTHON:-python3}
failed=0

$python - > "$out/machine.txt" <<'PY' || { echo "benchmarks/gpu.sh: torch sees no CUDA device; this script measures one" >&2; exit 2; }
import platform, torch, triton
assert torch.cuda.is_available()
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}")
PY
{ echo "# $(cat "$out/machine.txt")"; echo; echo "$(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"; echo; } > "$out/summary.md"

part() { # part NAME SECONDS COMMAND...: output to OUT_DIR/NAME.txt, its end into the summary
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  echo "== $name"
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || status=$?
  [ $status -eq 0 ] || failed=1
  tail -n 40 "$out/$name.txt"
  { echo "## $name: exit $status, $((SECONDS - start)) s"; echo; echo '```'; tail -n 40 "$out/$name.txt"; echo '```'; echo; } >> "$out/summary.md"
}

part tests 140 $python -m pytest -p no:cacheprovider -m gpu tests/kernels
if command -v compute-sanitizer > /dev/null; then
  part sanitizer 60 compute-sanitizer --error-exitcode 9 $python -m pytest -p no:cacheprovider -x tests/kernels -m gpu -k no_host_sync
else
  echo "compute-sanitizer: not installed, not run" | tee -a "$out/summary.md"
fi
part kernels 170 $python -m kernels.tools.bench --device cuda --case llama3-8b --rows 2048 8192 --peers --json "$out/kernels.json"
# the rule is in the table's last lines: RMSNorm and SwiGLU are kept only if they beat torch.compile's
part layers 70 $python -m kernels.tools.bench --device cuda --case rms_norm swiglu --json "$out/layers.json"
part train 100 $python benchmarks/train_8b.py "$out/train.json"
rm -rf "$out/triton-cache"
exit $failed
