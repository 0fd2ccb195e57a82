#!/usr/bin/env bash
# A node of the Ray cluster beside the head's, by srun on each. Ends with the step, and leaves nothing.
set -uo pipefail
# shellcheck source=slurm/lib.sh
source "$SHOAL_HOME/slurm/lib.sh"

address_of_node() { sed -n 's/^ok \([^ ]*\) .*/\1/p' "$SHOAL_LOGS/probe/$SLURMD_NODENAME"; }

exec >>"$SHOAL_LOGS/ray-$SLURMD_NODENAME.log" 2>&1
SHOAL_ADDRESS=$(address_of_node)
export SHOAL_ADDRESS
rm -rf "$SHOAL_TEMP"
trap 'stopped=1; kill -TERM "$ray" 2>/dev/null' TERM INT
stopped=
"$SHOAL_VENV/bin/python" -m shoal.slurm.ray_node worker &
ray=$!
await "$ray"
status=$?
say "Ray ended with status $status${stopped:+, as it was told}"
sweep
[ -n "$stopped" ] || exit "$((status ? status : 1))"
