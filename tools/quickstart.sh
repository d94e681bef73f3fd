#!/usr/bin/env bash
# From a fresh clone to a trained, evaluated vision-language model: installs, makes the demo data,
# trains a tiny SVL on two processes, scores it on 200 held-out scenes, writes a report.
# Works from any directory and again: what is done is not done twice.
# QUICKSTART_RUN names another run folder; further arguments are key=value of the recipe.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

RECIPE=tiny_svl
RUN="${QUICKSTART_RUN:-$ROOT/runs/quickstart}"

install base
dsvlp() { "$VENV/bin/dsvlp" "$@" </dev/null; }
# On a CPU each process gets its share of the cores; more threads than cores only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + 1) / 2))}"

step "checking the machine" "Do what the lines with an arrow say, then run this script again."
dsvlp doctor >/dev/null || dsvlp doctor

step "making the demo data" "Free some space in your cache folder (~/.cache), or point XDG_CACHE_HOME elsewhere."
mapfile -t data < <(dsvlp data demo "$RECIPE" "$@")
[ "${#data[@]}" = 2 ] || false
printf '%s\n' "${data[@]}"

step "training: $RUN" "Its log is in $RUN/logs. The same command goes on where the run stopped; QUICKSTART_RUN=other/folder starts afresh."
dsvlp train "$RECIPE" "$@" --nproc 2 --run "$RUN"

step "evaluating on held-out scenes" "The run is in $RUN: dsvlp evaluate $RUN --data ${data[1]} --nproc 2"
dsvlp evaluate "$RUN" --data "${data[1]}" --nproc 2

step "writing the report" "The run is in $RUN: dsvlp report $RUN"
dsvlp report "$RUN"

cat <<END

Done. Where to look:
  $RUN/report.html      the report, in any browser
  $RUN/scores.json      the scores
  $VENV/bin/tensorboard --logdir $RUN/tensorboard
Next, in this shell:
  source $VENV/bin/activate
  dsvlp data show ${data[1]} --out scenes.html
  dsvlp recipes
END
