#!/usr/bin/env bash
# benchmarks/gpu.sh OUT_DIR: everything worth doing when a GPU is at hand, at most 9 minutes and one for the sanitizer, no network, no install.
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

# What the card can do, and where a step spends it: the first thing to read.
part card 50 $python -m kernels.tools.card
# The case of the targets first, so that a cut keeps it.
bench="$python -m kernels.tools.bench --device cuda --case llama3-8b --repeats 3"
part kernels 90 $bench --rows 8192 --head frozen trained logp --json "$out/kernels.json"
part peers 60 $bench --rows 2048 --head frozen logp --peers --json "$out/peers.json"
# Not more than three at a time: two of the cases take 17 and 30 GB.
workers=""
$python -c "import xdist" 2> /dev/null && workers="-n 3"
part tests 150 $python -m pytest -p no:cacheprovider $workers -m gpu tests/kernels
# The rule is in the table's last lines: RMSNorm, SwiGLU and RoPE are kept only if they beat torch.compile's.
part layers 100 $python -m kernels.tools.bench --device cuda --case rms_norm swiglu rope --json "$out/layers.json"
part train 110 $python benchmarks/train_8b.py "$out/train.json"

# Last, and no failure of the script: it may not finish in its minute, and it sees no race in global memory
# (python -m kernels.tools.compile_ahead checks the order that rules one out).
if command -v compute-sanitizer > /dev/null; then
  before=$failed
  part sanitizer 60 compute-sanitizer --error-exitcode 9 $python -m pytest -p no:cacheprovider -x tests/kernels -m gpu -k no_host_sync
  failed=$before
else
  echo "compute-sanitizer: not installed, not run" | tee -a "$out/summary.md"
fi
rm -rf "$out/triton-cache"
exit $failed
