"""The interpreter of a test's ranks: as Python, but training waits at given steps for what befalls it.

`DSVLP_PYTHON` names `gated.sh`, which runs this. At each step of GATES (numbers, blank between) rank 0
leaves the file `RUN.gates/STEP` the first time it comes there, and waits until a stop signal arrives,
it is killed, or `RUN.gates/STEP.open` exists.
"""

import os
import runpy
import sys
import time
from pathlib import Path

PATIENCE_SECONDS = 240.0


def gate(folder: Path, gates: set[int]) -> None:
    """Makes training stop at the gates."""
    from dsvlp import dist
    from dsvlp.engine import step, stop

    received: list[int] = []
    run, handle = step.Step.run, stop.StopFlag._handle

    def note(self, number, frame):
        received.append(number)
        handle(self, number, frame)

    def wait(self, number, *rest, **named):
        mark = folder / str(number)
        if number in gates and dist.rank() == 0 and not mark.exists():
            mark.write_text(os.environ.get("SLURM_RESTART_COUNT", "0"))
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not received and not (folder / f"{number}.open").exists():
                assert time.monotonic() < deadline, f"nothing happened at step {number}"
                time.sleep(0.05)
        return run(self, number, *rest, **named)

    step.Step.run, stop.StopFlag._handle = wait, note


def main() -> None:
    module, arguments = sys.argv[2], sys.argv[3:]
    if module == "dsvlp" and arguments[0] == "train" and os.environ.get("GATES"):
        from dsvlp.engine.stop import hold

        hold()
        run = Path(arguments[arguments.index("--run") + 1])
        folder = run.with_name(f"{run.name}.gates")
        folder.mkdir(exist_ok=True)
        gate(folder, {int(number) for number in os.environ["GATES"].split()})
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
