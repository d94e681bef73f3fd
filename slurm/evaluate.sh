#!/usr/bin/env bash
# Scores a run on held-out data: losses and zero-shot retrieval, printed and written to RUN/scores.json:
#
#   sbatch --gpus-per-node=4 slurm/evaluate.sh RUN [--data X.beton] [other options of `dsvlp evaluate`]
#
# Resources and environment are as in pretrain.sh. An evaluation saves nothing in between: ended, it begins anew.

#SBATCH --job-name=dsvlp-evaluate
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

python="${DSVLP_PYTHON:-python3}"
if ! "$python" -c 'import dsvlp' 2>/dev/null; then
    echo "$python has no dsvlp. Activate its environment before sbatch, or set DSVLP_PYTHON=/path/to/.venv/bin/python." >&2
    exit 2
fi
exec "$python" -m dsvlp.launch.batch evaluate "$@"
