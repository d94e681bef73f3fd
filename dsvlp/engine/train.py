"""The one training loop: open the run, load, then while not done: step, save, validate.

Pre-training, fine-tuning and their evaluation are recipes of this loop. Everything that happens at
a step boundary is a function of the step or of flags that all ranks share, so all ranks act alike.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsvlp import catalog, config, dist
from dsvlp import log as logs
from dsvlp import recipe as recipes
from dsvlp import system as systems
from dsvlp.accounting import flops
from dsvlp.accounting.clock import Clock
from dsvlp.accounting.energy import Meter
from dsvlp.data.opened import Data, open_data
from dsvlp.engine import schedule, start, zero
from dsvlp.engine.checkpoint import CheckpointStore
from dsvlp.engine.deterministic import deterministic
from dsvlp.engine.evaluate import evaluate
from dsvlp.engine.exported import start_of
from dsvlp.engine.flags import LateFlags
from dsvlp.engine.gates import gate_names
from dsvlp.engine.run_folder import RunFolder, on_rank_0, versions
from dsvlp.engine.step import Step, StepOutput, mean_text_tokens, summary
from dsvlp.engine.stop import StopFlag
from dsvlp.engine.trace import Trace
from dsvlp.engine.watch import Watch
from dsvlp.engine.watchdog import Watchdog
from dsvlp.errors import RunError
from dsvlp.files import write_json
from dsvlp.recipe import Recipe
from dsvlp.types import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        step: optimizer steps made, over all attempts.
        stopped: ended on request before the last step; a new start goes on.
        validation: the last validation's losses and metrics.
    """

    step: int
    stopped: bool
    validation: dict[str, float]


def train(
    recipe: Recipe, folder: Path, *, override: bool = False, began: float | None = None, trace: bool = False
) -> Outcome:
    """Trains a recipe in a run's folder, from its newest good checkpoint where there is one.

    Every rank must call. Signals and hangs are handled here.

    Args:
        recipe: the resolved recipe.
        folder: the run's folder.
        override: go on although the folder's recipe differs in what binds.
        began: epoch seconds at which this process began, for the ledger; None: now.
        trace: also write a profiler's trace of a few steps, see `engine.trace`.

    Raises:
        RunError: the folder belongs to another run, or the losses are not finite again and again.
    """
    began = time.time() if began is None else began
    with (
        deterministic(recipe.engine.deterministic),
        StopFlag() as stop,
        Watchdog(recipe.engine.watchdog_seconds) as watchdog,
    ):
        zero.join(recipe.engine.watchdog_seconds)
        run = RunFolder(folder, recipe, override, began)
        clock = Clock(dist.world_size(), earlier=time.time() - began)
        outcome, failure = "failed", None
        try:
            logs.setup(dist.rank(), folder / "logs")
            for note in catalog.notes(recipe):
                log.info(note)
            with open_data(recipe) as data:
                # Prediction and export need it when the data are elsewhere.
                on_rank_0(lambda: data.tokenizer.save(folder / "tokenizer"))
                result = Trainer(recipe, run, data, clock, stop, watchdog, trace).run()
            outcome = "stopped" if result.stopped else "finished"
        except BaseException as error:  # noted in the ledger and raised again
            failure = error
            raise
        finally:
            clock.tick()
            run.close(outcome, clock.own, failure)
    return result


def gpu_uuid(device: torch.device) -> str | None:
    """Returns a GPU's name that holds on the whole machine, None for a CPU."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


class Trainer:
    """One attempt of a run. `run` is the loop; every method is called by every rank alike.

    Args:
        recipe: the resolved recipe.
        folder: the open run folder.
        data: the open data: loaders, tokenizer, facts.
        clock: the run's clock.
        stop: this rank's stop flag.
        watchdog: ends a step that hangs.
        trace: trace a few steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        data: Data,
        clock: Clock,
        stop: StopFlag,
        watchdog: Watchdog,
        trace: bool = False,
    ) -> None:
        self._recipe, self._folder, self._data = recipe, folder, data
        self._clock, self._stop, self._watchdog = clock, stop, watchdog
        self._accumulation = recipes.accumulation(recipe, dist.world_size())
        self._store = CheckpointStore(folder.checkpoints, recipe.checkpoint.keep)
        self._checkpoint = self._store.load()
        self._system = systems.build(recipe, data.facts)
        if self._checkpoint is None:
            self._start()
        self._engine = zero.Engine(self._system, recipe, accumulation=self._accumulation)
        self._step_runner = Step(self._engine, self._system, recipe, self._accumulation, data.fetcher)
        self._timer = self._step_runner.timer
        self._trace = Trace(folder.path, self._system, self._timer) if trace else None
        tables: dict[str, Any] = recipe.objectives.enabled()
        self._weights = {name: tables[name].weight for name in self._system.objectives}
        self._gates = gate_names(name for name, _ in self._system.named_parameters())
        self._meter = Meter(gpu_uuid(self._engine.device))
        self._flags = LateFlags(self._engine.device, 2)
        self._skips = torch.zeros(2, device=self._engine.device)  # in a row, in all
        self._recent: deque[tuple[int, list[int]]] = deque(maxlen=recipe.engine.max_skipped_steps + 2)
        self._step = self._began_at = 0
        self._tokens_of_steps = 0.0
        self._saved_step = self._validated_step = -1
        self._best: dict[str, float] | None = None
        self._validation: dict[str, float] = {}

    def run(self) -> Outcome:
        """Trains from where the run stands to its last step, or until it is asked to stop.

        A stop saves at once: a picture due at the same step is left out, a validation is made up for by
        the attempt that goes on.
        """
        self._resume()
        watch, steps = self._recipe.watch, self._recipe.schedule.steps
        if self._step >= steps:
            log.info("all %d steps are made; nothing is left to do", steps)
            self._store.close()
            return Outcome(self._step, False, {})
        self._watch = Watch(
            self._recipe, self._folder.path, self._step, self._clock, self._data.facts, self._engine.device
        )
        if self._step and self._due(watch.validate_every_steps) and self._validated_step != self._step:
            self._validate()
        while self._step < steps:
            with self._clock.phase("redone" if self._step < self._folder.made else "train"):
                output = self._take_step()
                if self._due(watch.log_every_steps):
                    self._log(output)
            if self._read_flags():
                break
            if output.shown is not None:
                with self._clock.phase("pictures"), self._timer.paused():
                    self._watch.draw(self._step, output.shown, self._data.tokenizer.tokens)
            if self._due(watch.validate_every_steps):
                self._validate()
            if self._due(self._recipe.checkpoint.every_steps) and self._step < steps:
                self._save()
        return self._finish(stopped=self._step < steps)

    def _due(self, every: int) -> bool:
        return every > 0 and self._step % every == 0

    def _take_step(self) -> StepOutput:
        self._watchdog.progress(f"step {self._step + 1}")
        with self._timer.part("data"), self._clock.phase("data_wait"):
            batches = [next(self._data.train) for _ in range(self._accumulation)]
        self._note(batches)
        show = self._recipe.watch.pictures_every_steps
        output = self._step_runner.run(
            self._step + 1,
            batches,
            schedule.factor(self._recipe.schedule, self._step),
            stop=self._stop.received is not None,
            show=show > 0 and (self._step + 1) % show == 0,
        )
        self._step += 1
        if self._trace is not None:
            self._trace.step()
        self._folder.reached(self._step, self._clock.own)
        skipped = (~output.finite).float()
        self._skips = torch.stack([(self._skips[0] + 1) * skipped, self._skips[1] + skipped])
        self._flags_next = torch.stack([output.stop, self._skips[0]])
        return output

    def _note(self, batches: list[Batch]) -> None:
        """Remembers which samples a step had, should it turn out not finite; and the texts' mean length."""
        ids = [int(i) for batch in batches if batch.samples is not None for i in batch.samples.tolist()]
        self._recent.append((self._step + 1, ids))
        self._text_tokens = mean_text_tokens(batches)
        self._tokens_of_steps += self._text_tokens

    def _read_flags(self) -> bool:
        """Returns whether all ranks stop at this boundary; what is read was posted one step ago.

        Raises:
            RunError: too many steps in a row were not finite.
        """
        flags = self._flags.read()
        self._flags.post(self._flags_next)
        if flags is None:
            return False
        stopping, skipped = flags
        if skipped >= self._recipe.engine.max_skipped_steps:
            self._give_up(int(skipped))
        return stopping > 0

    def _give_up(self, skipped: int) -> None:
        path = self._folder.path / f"non_finite-rank-{dist.rank()}.json"
        write_json(path, {"steps": [{"step": step, "samples": ids} for step, ids in self._recent]})
        raise RunError(
            f"the loss or its gradient was not finite {skipped} steps in a row, up to step {self._step - 1}",
            f"fewer than engine.max_skipped_steps = {self._recipe.engine.max_skipped_steps}",
            f"Look at the samples in {path.parent}/non_finite-rank-*.json, or lower optimizer.lr",
        )

    def _log(self, output: StepOutput) -> None:
        values = summary(output, list(self._weights), self._weights)
        values |= {f"optimizer/learning_rate/{part}": lr for part, lr in self._engine.rates().items()}
        values["optimizer/skipped_steps"] = float(self._skips[1])
        values["data/bad_images_on_rank_0"] = float(self._data.bad_images)
        values["data/pairs_without_partner"] = float(self._data.train.partnerless)
        values |= {f"gates/{self._gates[n]}": gate.item() for n, gate in self._engine.weights(self._gates)}
        self._watch.step(self._step, values, self._timer, self._text_tokens)
        self._price()

    def _price(self) -> None:
        """Notes in the ledger what a pair costs at the texts' mean length, and the energy so far."""
        steps = self._step - self._began_at
        tokens = self._tokens_of_steps / steps if steps else None
        self._folder.note(
            flop_per_sample=flops.train_flops(self._recipe, text_tokens=tokens, facts=self._data.facts),
            joules=self._joules(),
            peak_flops=self._watch.peak_flops,
            peak_kind=self._watch.peak_kind,
        )

    def _joules(self) -> float | None:
        """Returns the energy of all ranks' GPUs since the start, None where one of them does not tell."""
        if self._engine.device.type != "cuda":
            return None
        own = torch.tensor(self._meter.joules(), dtype=torch.float64, device=self._engine.device)
        joules: float = dist.all_reduce_sum(own).item()
        return None if math.isnan(joules) else joules

    def _validate(self) -> None:
        """Measures the validation data, and saves where the total loss is the lowest so far."""
        self._validated_step = self._step
        if not self._data.has_validation:
            return
        with self._clock.phase("validate"), self._timer.paused():
            with self._data.validation() as batches:
                self._validation = evaluate(
                    self._engine, self._system, batches, self._weights, self._watchdog.progress
                )
            loss = self._validation["loss/total"]
            best = math.isfinite(loss) and (self._best is None or loss < self._best["loss"])
            self._watch.validated(self._step, self._validation, best)
        if best:
            self._best = {"step": self._step, "loss": loss}
            self._save()

    def _save(self) -> None:
        """Saves this step in the background, once. Where the disk refuses, the store warns."""
        if self._saved_step == self._step:
            return
        self._watchdog.progress(f"saving step {self._step}")
        with self._clock.phase("save"), self._timer.paused():
            begin = time.perf_counter()
            self._watch.flush()
            best = [] if self._best is None else [int(self._best["step"])]
            self._store.save(self._step, self._engine.fragments(), self._state(), protect=best)
            self._saved_step = self._step
            self._watch.saved(time.perf_counter() - begin)

    def _state(self) -> dict[str, Any]:
        """Returns what a checkpoint's JSON holds: all state that is not a tensor of the engine."""
        in_row, in_all = self._skips.tolist()
        return {
            "step": self._step,
            "recipe": config.dump(self._recipe),
            "engine": self._engine.layout_state(),
            "facts": self._data.facts.to_json(),
            "data": self._data.train.state_dict(),
            "clock": self._clock.state_dict(),
            "skipped_in_row": in_row,
            "skipped": in_all,
            "best": self._best,
            "validated_step": self._validated_step,
            "versions": versions(),
            "world": dist.world_size(),
        }

    def _start(self) -> None:
        """Takes the weights of the recipe's `start`, where it names one; a run that goes on has its own."""
        exported = start_of(self._recipe)
        if exported is not None:
            start.begin(self._system, exported, self._data.facts, self._data.tokenizer)
            on_rank_0(lambda: start.record(exported, self._folder.path))

    def _resume(self) -> None:
        """Goes on from the newest checkpoint that verifies, where there is one."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            log.info("starting at step 0 in %s", self._folder.path)
            self._folder.reached(0, self._clock.own)
            return
        state = checkpoint.state
        self._engine.restore(checkpoint.reader)
        checkpoint.reader.close()
        self._data.train.load_state_dict(state["data"])
        self._clock.load_state_dict(state["clock"])
        self._skips = torch.tensor([state["skipped_in_row"], state["skipped"]], device=self._engine.device)
        self._step = self._began_at = self._saved_step = state["step"]
        self._best = state["best"]
        self._validated_step = state["validated_step"]
        self._folder.reached(self._step, self._clock.own)
        changed = config.differences(state["versions"], versions())
        if changed:
            log.warning("resuming with other versions than the checkpoint's: %s", "; ".join(changed))
        log.info("resumed step %d from %s", self._step, checkpoint.path)

    def _finish(self, stopped: bool) -> Outcome:
        """Saves, after the last step with its validation: a checkpoint of the last step is a finished run."""
        if self._trace is not None:
            self._trace.close()
        self._price()
        if stopped:
            log.info("asked to stop (%s): saving step %d", self._stop.received or "another rank", self._step)
        elif self._validated_step != self._step:
            self._validate()
        self._save()
        self._watchdog.progress("waiting for the last checkpoint")
        saved = self._store.wait()
        if saved is not None and saved.problem is not None:
            raise RunError(
                f"the last checkpoint, step {self._step}, could not be written: {saved.problem}",
                "space for it",
                "Free space and start again: the run goes on from the checkpoint before",
            )
        self._store.close()
        self._watch.close({} if stopped else self._validation)
        return Outcome(self._step, stopped, self._validation)
