#!/bin/sh
# All that a report on a GPU needs, in one call of at most nine minutes; PARTS measures some of it: see gpu.py.
#
#     benches/gpu.sh OUT.json [BINARY]
#
# The Python in $PYTHON (default: .venv/bin/python, else python3) must have torch 2.11 with CUDA; the binary is linked to that libtorch.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:?"usage: benches/gpu.sh OUT.json [BINARY]"}
binary=${2:-$root/target/release/foldconv}
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
# The binary's own run path is that of the machine that built it.
lib=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
nvidia=$(dirname "$lib")/../nvidia
for folder in "$nvidia"/*/lib; do
  [ -d "$folder" ] && lib=$lib:$folder
done
LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$python" "$root/benches/gpu.py" --foldconv "$binary" --json "$out" \
  --device "${DEVICE:-cuda}" --minutes "${MINUTES:-9}" ${PARTS:+--parts $PARTS}
