#!/usr/bin/env bash
# Makes the environment that jobs use, once: slurm/setup_env.sh. On a site whose login nodes differ from its compute nodes:
#   srun --nodes=1 slurm/setup_env.sh
# Without arguments it installs into SHOAL_VENV (.venv); it does nothing where that is whole already.
set -euo pipefail
SHOAL_HOME=${SHOAL_HOME:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
export SHOAL_HOME
# shellcheck source=slurm/lib.sh
source "$SHOAL_HOME/slurm/lib.sh"

extras=${SHOAL_EXTRAS:-lora,math,ifeval,json,cluster}
whole=$SHOAL_VENV/.shoal-$(echo "$extras" | tr -c 'a-z0-9\n' -)
mkdir -p "$(dirname "$SHOAL_VENV")"
exec 9>"$SHOAL_VENV.lock"
flock 9
if [ -f "$whole" ] && [ "$whole" -nt "$SHOAL_HOME/pyproject.toml" ]; then
    say "$SHOAL_VENV is there already"
    exit 0
fi
[ -x "$SHOAL_VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$SHOAL_VENV"
say "installing shoal-rl[$extras] into $SHOAL_VENV"
DS_BUILD_OPS=0 "$SHOAL_VENV/bin/python" -m pip install --quiet --constraint "$SHOAL_HOME/constraints.txt" --editable "${SHOAL_HOME}[$extras]"
"$SHOAL_VENV/bin/python" -c "import shoal.api"
touch "$whole"
say "done: $SHOAL_VENV"
