# shellcheck shell=bash
# What every task of a job finds in its environment; sourced by the .sbatch files beside it. What is
# set at submission wins (sbatch passes it on), so a site's values can stand in one's profile.

# The environment that the package is installed in: the one beside this folder, unless another is active.
# shellcheck disable=SC1091,SC2154  # it need not be there; `beside` is set by whoever sources this
if [[ -z ${VIRTUAL_ENV:-} && -f $beside/../.venv/bin/activate ]]; then source "$beside/../.venv/bin/activate"; fi

# Compute nodes mostly have no way out: a look at the hub would wait for minutes instead of failing.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# Tokenizers' threads are in the way of processes that are forked to read data.
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
# Lines reach the job's output when they are printed, not when a buffer is full or lost with a node.
export PYTHONUNBUFFERED=1

# Compiled kernels: on the node's own disk, for hundreds of ranks that write one shared cache wait for
# its locks, and one directory for each user, as others' cannot be written.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${SLURM_TMPDIR:-/tmp}/ibtrain-triton-$(id -u)}
# The same for what torch compiles.
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${SLURM_TMPDIR:-/tmp}/ibtrain-inductor-$(id -u)}
# ... and for the operators that DeepSpeed builds under a sharding file of one's own.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-${SLURM_TMPDIR:-/tmp}/ibtrain-extensions-$(id -u)}

# One thread for each CPU of a task; without it every task starts as many as the node has CPUs.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

# A rank that died must end the others: NCCL's watchdog aborts what waits for it.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
# Warnings say which network was not usable; INFO is a page for each rank.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# Connections are made on the networks that lead to other nodes, never on loopback or a container's.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-^lo,docker,veth,virbr}
# Memory that is given back in pieces can be used again for a batch of another length.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}

# Each srun within the job asks for as many CPUs a task as the job has (Slurm 22.05 and later forget).
export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}}
# DeepSpeed calls functions that newer torch renames: every rank would say so at every step.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::FutureWarning}
