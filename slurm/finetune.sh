#!/usr/bin/env bash
# Starts a second stage from the weights of a first one, and goes on after whatever ends it:
#
#   sbatch -N 1 --gpus-per-node=8 slurm/finetune.sh RECIPE FROM [KEY=VALUE...]
#
# FROM is a run's folder (its newest checkpoint) or a folder of `dsvlp export` or `dsvlp import`. Resources,
# environment and what happens when the job is ended are as in pretrain.sh.

#SBATCH --job-name=dsvlp-finetune
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
exec "$python" -m dsvlp.launch.batch finetune "$@"
