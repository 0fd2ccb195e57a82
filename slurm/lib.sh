# shellcheck shell=bash
# What the scripts of this folder share; sourced on every node. SHOAL_HOME is the repository, SHOAL_SITE the site's settings.

say() { echo "$(date +%T) [${SLURMD_NODENAME:-$(hostname)}] $*"; }

die() {
    say "shoal: error: $1" >&2
    exit "${2:-1}"
}

SHOAL_SITE=${SHOAL_SITE:-$SHOAL_HOME/slurm/site/generic.sh}
[ -f "$SHOAL_SITE" ] || die "SHOAL_SITE=$SHOAL_SITE: no such file" 2
SHOAL_SITE=$(realpath "$SHOAL_SITE")
export SHOAL_SITE
# shellcheck source=slurm/site/generic.sh
source "$SHOAL_SITE"

export SHOAL_VENV=${SHOAL_VENV:-$SHOAL_HOME/.venv}
node_end=${SLURMD_NODENAME:-here}
export SHOAL_TEMP=${SHOAL_TEMP_ROOT:-/tmp}/shoal-${SLURM_JOB_ID:-0}-${node_end:${#node_end}<8?0:-8}
export SHOAL_GPUS=${SHOAL_GPUS:-${SLURM_GPUS_ON_NODE:-0}}
# What this script starts can be told from everything else on the node by this variable.
SHOAL_MARK=${SLURM_JOB_ID:-0}.${SLURM_RESTART_COUNT:-0}.${SLURMD_NODENAME:-here}.$(date +%s).$$
export SHOAL_MARK
# No script of the site's shell set-up may preload a library into Ray: SHOAL_LD_PRELOAD is for the driver alone.
unset LD_PRELOAD

# The status of a child, whatever signals this shell gets meanwhile.
await() {
    local status
    while true; do
        wait "$1"
        status=$?
        kill -0 "$1" 2>/dev/null || break
    done
    if [ "$status" -gt 128 ]; then
        wait "$1"
        status=$?
    fi
    return "$status"
}

# Waits for a child at most so many seconds; status 1 where it is still there.
await_at_most() {
    local end=$((SECONDS + $2))
    while kill -0 "$1" 2>/dev/null; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

# The processes that this script has started, and theirs. This shell is not among them: it made the mark after its start.
marked() {
    # The list of files is made before grep starts, so that it does not find itself.
    grep -lzxF "SHOAL_MARK=$SHOAL_MARK" /proc/[0-9]*/environ 2>/dev/null | tr -dc '0-9\n'
}

# Ends what this script started and is still there. Nothing else is touched: `ray stop` would end every
# Ray of the machine, another job's too.
sweep() {
    local pids
    mapfile -t pids < <(marked)
    [ "${#pids[@]}" -gt 0 ] && kill -TERM "${pids[@]}" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        mapfile -t pids < <(marked)
        [ "${#pids[@]}" -gt 0 ] || break
        sleep 0.2
    done
    [ "${#pids[@]}" -gt 0 ] && kill -KILL "${pids[@]}" 2>/dev/null
    rm -rf "$SHOAL_TEMP"
}
