# A site's preamble: shell lines that every task runs before Python starts, as in cluster.preamble=slurm/example.sh.
# The Python that launched is used in the tasks too; what it needs from modules is loaded here.
if command -v module > /dev/null 2>&1; then
    module purge
    # module load cuda/12.8
fi
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export TORCHINDUCTOR_CACHE_DIR="${SLURM_TMPDIR:-/tmp}/inductor-$USER"   # compiled kernels: a local disk is faster
# export WANDB_MODE=offline     # nodes without a network; action=wandb_push sends the runs later
