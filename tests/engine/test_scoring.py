"""What `dsvlp evaluate` is asked for and the system has no part for is refused before anything runs."""

from pathlib import Path

import pytest

from dsvlp import recipe, system
from dsvlp.engine.inference import Trained
from dsvlp.engine.scoring import Scorer, Settings
from dsvlp.errors import RunError
from tests.batches import make_facts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(rerank=8), r"--rerank: the run was trained without objectives\.itc"),
        (Settings(zero_gates=True), "--zero-gates: svl has no gates"),
        (Settings(all_pairs=True), r"--all-pairs: the run was trained without objectives\.itm"),
    ],
)
def test_a_score_that_the_system_has_no_part_for_is_refused(settings, message):
    dropped = ["objectives.segl=false", *(["objectives.itm=false"] if settings.all_pairs else [])]
    svl = recipe.load("tiny_svl", dropped)
    facts = make_facts()
    trained = Trained(svl, facts, system.build(svl, facts), 0, Path("step-00000000"))
    with pytest.raises(RunError, match=message):
        Scorer(trained, None, settings)
