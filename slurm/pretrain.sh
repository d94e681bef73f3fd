#!/usr/bin/env bash
# Trains a recipe under Slurm, from one GPU to many nodes, and goes on after whatever ends it:
#
#   sbatch -N 2 --gpus-per-node=8 --time=24:00:00 slurm/pretrain.sh pretrain_svl optimizer.lr=1e-4
#
# Options before the script are sbatch's and override the lines below; after it come RECIPE [KEY=VALUE...].
# One task a GPU. Without GPUs: --gpus-per-node=0 --ntasks-per-node=4. Submit from a folder that all nodes see.
#
# Environment (exported when you call sbatch):
#   DSVLP_PYTHON        interpreter of the nodes; default: the activated environment's python3
#   DSVLP_RUN           the run's folder; default runs/RECIPE-JOB, the same for each restart
#   DSVLP_CONTAINER     KIND:IMAGE runs the ranks in apptainer, enroot or pyxis; example apptainer:/images/dsvlp.sif
#   DSVLP_STAGE         a folder on each node's own disk: .beton data are copied there, checked, and removed after
#   DSVLP_MAX_RESTARTS  failures after which the job is not started again; default 20. Stops do not count.
#
# Preemption, the time limit, a dead node, a killed task, `scontrol requeue`: the job starts again and goes on
# bit for bit. `scancel JOB` ends it for good; `scancel --signal=USR2 JOB` saves and starts again.

#SBATCH --job-name=dsvlp
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=4
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

python="${DSVLP_PYTHON:-python3}"
if ! "$python" -c 'import dsvlp' 2>/dev/null; then
    echo "$python has no dsvlp. Activate its environment before sbatch, or set DSVLP_PYTHON=/path/to/.venv/bin/python." >&2
    exit 2
fi
exec "$python" -m dsvlp.launch.batch train "$@"
