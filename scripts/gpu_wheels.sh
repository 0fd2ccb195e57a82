#!/usr/bin/env bash
# Collects what Shoal needs on a GPU machine without a network that has Python 3.12, torch (2.11 or later), transformers
# and their own needs, numpy, pandas, pyarrow, httpx, uvloop, psutil, rich, tensorboard and pytest. On a machine with a network:
#   scripts/gpu_wheels.sh [FOLDER]      # wheels for x86-64 Linux into FOLDER (default: wheels), in the versions of constraints.txt
# On the GPU machine, in the repository:
#   python3 -m pip install --no-index --no-deps --target site wheels/*.whl
#   PYTHONPATH=$PWD/site make test-gpu bench-gpu GPU_PYTHON=python3
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-wheels}
most=$((60 * 1024 * 1024))
names=(
  datasets dill multiprocess                                   # data
  fastapi starlette pydantic pydantic_core annotated-types typing-inspection uvicorn httptools
  hydra-core hydra-joblib-launcher omegaconf joblib            # configuration
  isal msgspec pysimdjson                                      # the rollout API
)
versions=()
for name in "${names[@]}"; do
  pattern="^$(sed 's/[-_]/[-_]/g' <<<"$name")=="
  versions+=("$(grep -iE "$pattern" constraints.txt)")
done
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux_2_12 manylinux_2_5 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
python=${PYTHON:-python3}
mkdir -p "$folder"
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
  -d "$folder" "${versions[@]}"
# This one comes as source only; it is pure Python, so a wheel made anywhere does.
"$python" -m pip wheel -q --no-deps -w "$folder" "$(grep -i '^antlr4-python3-runtime==' constraints.txt)"
size=$(du -cb "$folder"/*.whl | tail -n 1 | cut -f 1)
echo "$folder: $(ls "$folder"/*.whl | wc -l) wheels, $((size / 1024 / 1024)) MiB"
if [ "$size" -gt "$most" ]; then
  echo "more than 60 MiB: take a name off the list in $0 and install that package on the machine by other means" >&2
  exit 1
fi
