"""tools/mini_slurm.sh is a real Slurm, and dsvlp.slurm understands what it says."""

from __future__ import annotations

import subprocess

import pytest

from dsvlp import slurm
from tests.slurm.conftest import SCRIPT, Cluster, until

pytestmark = pytest.mark.slow


@pytest.fixture
def here(cluster: Cluster, monkeypatch) -> Cluster:
    """Returns the cluster, made this process's own."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    return cluster


def test_a_second_start_is_refused_by_folder_and_by_port(cluster):
    again = cluster.tool("start")
    assert again.returncode == 1 and "a cluster already runs in" in again.stderr
    other = {**cluster.environment, "MINI_SLURM_DIR": f"{cluster.folder}-other"}
    taken = subprocess.run(
        ["bash", str(SCRIPT), "start"], env=other, capture_output=True, text=True, timeout=60
    )
    assert taken.returncode == 1 and "is taken by another program. Set MINI_SLURM_PORT" in taken.stderr


def test_what_it_cannot_do_is_said(cluster):
    for words, told in (
        (["kill-node", "3"], "give a number from 1 to 2"),
        (["dance"], "mini_slurm.sh start"),
    ):
        done = cluster.tool(*words)
        assert done.returncode != 0 and told in done.stdout + done.stderr
    stranger = subprocess.run(
        ["bash", "-s", "start"],
        input=SCRIPT.read_text(),
        user=65534,
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    assert stranger.returncode == 1 and "needs root" in stranger.stderr


def test_partitions_accounts_states_and_times_are_understood(here):
    low, high = slurm.partitions()
    assert (low.name, low.nodes, low.gpus_per_node, low.is_default) == ("low", 2, 4, True)
    assert (high.name, high.time_limit_minutes, high.nodes_with(4), high.nodes_with(5)) == (
        "high",
        None,
        2,
        0,
    )
    assert "lab" in slurm.accounts("root") and slurm.accounts("nobody") == []
    job = here.sbatch("--time=7", "--hold", "--wrap=true")
    assert slurm.job_state(job) == "PENDING" and slurm.end_time(job) is None
    here.command("scontrol", "release", job)
    assert here.wait(job, 60) == "COMPLETED" and slurm.job_state(job) == "COMPLETED"
    assert slurm.job_state("99999") is None and slurm.job_fields("99999") == {}
    with pytest.raises(slurm.SlurmError, match="Invalid job id"):
        slurm.requeue("99999")


def test_gpus_are_handed_out_and_accounted_for(here):
    told = here.command("srun", "-N2", "--gpus-per-node=3", "printenv", "CUDA_VISIBLE_DEVICES", seconds=60)
    assert told.split() == ["0,1,2"] * 2
    listed = ["--allusers", "-X", "-n", "-P", "--name=printenv", "-o", "AllocTRES"]
    until(lambda: "gres/gpu=6" in slurm.sacct(listed), 20, "the step in the accounting")


def test_a_nodes_power_cut_is_noticed_and_it_comes_back(here):
    def states() -> list[str]:
        return here.command("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split()

    here.kill_node(2)
    until(lambda: any(state.startswith("down") for state in states()), 60, "the node to be down")
    assert here.tool("status").returncode == 1
    here.start_node(2)
    until(lambda: states() == ["idle", "idle"], 60, "both nodes")
    assert here.tool("status").returncode == 0
