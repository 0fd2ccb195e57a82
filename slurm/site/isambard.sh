# shellcheck shell=bash
# Isambard-AI: nodes of four GH200, Slingshot network, home and project folders on network file systems.
# Use it by `export SHOAL_SITE=slurm/site/isambard.sh`.

# shellcheck disable=SC2034 # read by shoal slurm submit
SHOAL_SBATCH="--gpus-per-node=4 --cpus-per-task=72 --time=24:00:00"

# A node reports 288 CPUs, and Ray would start a worker for each.
export SHOAL_CPUS=${SHOAL_CPUS:-32}
# A node has several network cards; hsn0 is the fast one. Head and workers both give Ray its address.
export SHOAL_INTERFACE=${SHOAL_INTERFACE:-hsn0}
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-hsn0}
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-hsn}
# A network file system holds no Unix sockets.
export SHOAL_TEMP_ROOT=${SHOAL_TEMP_ROOT:-/tmp}
# Compute nodes need not reach the Hub: fetch models and data on a login node.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# NCCL over Slingshot.
export FI_PROVIDER=${FI_PROVIDER:-cxi}
export NCCL_NET=${NCCL_NET:-AWS Libfabric}
export FI_CXI_DISABLE_HOST_REGISTER=${FI_CXI_DISABLE_HOST_REGISTER:-1}
export FI_MR_CACHE_MONITOR=${FI_MR_CACHE_MONITOR:-userfaultfd}
# NCCL of the environment instead of the module's, for the driver alone: preloaded into Ray it breaks its workers.
# export SHOAL_LD_PRELOAD=$SHOAL_HOME/.venv/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2
# Two ranks of one NCCL group on one node end in "Duplicate GPU": one learner a node (learner.num_devices = nodes).
