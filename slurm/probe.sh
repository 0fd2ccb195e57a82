#!/usr/bin/env bash
# Checks one node of a job, by srun on each: writes `ok ADDRESS PORT` or `bad REASON` to $1/NODE.
set -uo pipefail
# shellcheck source=slurm/lib.sh
source "$SHOAL_HOME/slurm/lib.sh"

report=$1/$SLURMD_NODENAME
python=$SHOAL_VENV/bin/python
if [ ! -x "$python" ]; then
    echo "bad there is no $python here: run slurm/setup_env.sh, or set SHOAL_VENV" >"$report"
elif ! timeout 40 "$python" -m shoal.slurm.probe >"$report.part" 2>"$report.err" && ! grep -q '^bad ' "$report.part"; then
    echo "bad $python does not work: $(tail -n 1 "$report.err")" >"$report"
else
    mv "$report.part" "$report"
fi
