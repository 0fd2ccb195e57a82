# shellcheck shell=bash
# Settings of a site, sourced on every node before anything starts. Copy this file, and name the copy in SHOAL_SITE.
# What is commented out shows the default.

# The options that `shoal slurm submit` gives sbatch; for plain sbatch give them yourself.
# SHOAL_SBATCH="--time=24:00:00 --gpus-per-node=4 --cpus-per-task=32"

# module load cuda                          # whatever a shell needs here
# export SHOAL_VENV=$SHOAL_HOME/.venv       # made by slurm/setup_env.sh; may be on each node's own disk
# export SHOAL_EXTRAS=lora,math,ifeval,json,cluster
# export SHOAL_RUN_ROOT=outputs             # where run folders are made, seen by every node (run.root=)
# export SHOAL_TEMP_ROOT=/tmp               # a short path on the node's own disk, for Ray's sockets and logs
# export SHOAL_INTERFACE=                   # network card by which nodes reach each other; empty: SLURM's own address
# export SHOAL_RAY=1                        # 0: no Ray, for runs on one node with learner=local
# export SHOAL_CPUS=                        # CPUs that Ray is told of; empty: the job's, at most 32
# export SHOAL_OBJECT_STORE_MB=1000         # Ray's store on each node
# export SHOAL_LD_PRELOAD=                  # preloaded into the driver and what it starts, never into Ray
# export SHOAL_KEEP_ENV=                    # beginnings of further variables that Ray and the driver get
# export SHOAL_DISK_GB=2                    # a node with less free is refused
# export SHOAL_NODE_SECONDS=180             # so long nodes may take to join Ray
# export SHOAL_WATCH_SECONDS=30             # between two looks at whether a node is drained or down
# export SHOAL_MAX_FAILURES=3               # attempts in a row without progress after which a job gives up
# export SHOAL_CHAIN=1                      # 0: a job that reaches its time limit ends
