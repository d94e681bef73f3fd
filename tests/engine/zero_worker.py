"""One rank of the engine's tests: `zero_worker.py THEME FOLDER`; rank 0 writes FOLDER/THEME.json."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from dsvlp import dist
from dsvlp.engine.checkpoint import CheckpointStore
from dsvlp.engine.zero import Engine, StepResult, join
from dsvlp.launch.local import leave
from tests.engine.toy import BATCH, MICRO, Request, Toy, make_recipe, micro_batch

LAYOUTS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")


def build(
    zero: str, precision: str = "fp32", seed: int = 0, dropout: float = 0.2, statistics: bool = True
) -> Engine:
    torch.manual_seed(seed)
    system = Toy(dropout, statistics)
    accumulation = BATCH // (MICRO * dist.world_size())
    engine = Engine(system, make_recipe(zero, precision), accumulation=accumulation)
    engine.train()
    return engine


def step(engine: Engine, number: int, poison: float = 1.0) -> tuple[StepResult, float]:
    """Makes one optimizer step; `poison` multiplies the last rank's last loss. Returns the loss too."""
    world, rank = dist.world_size(), dist.rank()
    accumulation = BATCH // (MICRO * world)
    total = torch.zeros(())
    for micro in range(accumulation):
        torch.manual_seed(1000 * number + 10 * micro + rank)
        last = micro == accumulation - 1 and rank == world - 1
        ids = micro_batch(number, micro * world + rank)
        loss = engine(Request(ids, poison if last else 1.0, detour=number % 2 == 1))["toy"]
        engine.backward(loss.sum * world * accumulation / BATCH)
        total += loss.sum.detach()
    return engine.step(1 / number), float(dist.all_reduce_sum(total))


def digest(engine: Engine) -> str:
    """Returns a hash of all state on all ranks: weights, moments, buffers, and the module's copies."""
    mine = hashlib.sha256()
    for f in engine.fragments():
        mine.update(f"{f.name}|{f.state}|{f.start}".encode() + f.tensor.cpu().numpy().tobytes())
    for name, tensor in engine.weights():
        mine.update(name.encode() + tensor.numpy().tobytes())
    counters = engine.layout_state()
    return "/".join(dist.gather_objects(mine.hexdigest())) + str(counters["updates"])


def save(engine: Engine, folder: Path, number: int, **state: Any) -> None:
    store = CheckpointStore(folder)
    saved = store.save(
        number, engine.fragments(), {"engine": engine.layout_state(), **state}, background=False
    )
    assert saved is not None and saved.problem is None
    store.close()


def restored(folder: Path, zero: str, precision: str = "fp32", **build_keys: Any) -> Engine:
    """Returns a fresh engine of other initial weights that has read the newest checkpoint of `folder`."""
    engine = build(zero, precision, seed=99, **build_keys)
    store = CheckpointStore(folder)
    checkpoint = store.load()
    assert checkpoint is not None
    engine.restore(checkpoint.reader)
    store.close()
    return engine


def weights(engine: Engine) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in engine.weights()}


def resume(folder: Path) -> dict[str, Any]:
    """6 steps = 3, save, fresh engine, 2, save, fresh engine, 1; in every layout; then conversions."""
    out: dict[str, Any] = {}
    for zero, precision in [
        *((z, "fp32") for z in LAYOUTS),
        ("zero0", "bf16"),
        ("zero1", "bf16"),
        ("zero3", "bf16"),
    ]:
        case = f"{zero}-{precision}"
        engine = build(zero, precision)
        losses = [step(engine, n)[1] for n in (1, 2, 3)]
        at_3 = digest(engine)
        save(engine, folder / case, 3)
        losses += [step(engine, n)[1] for n in (4, 5)]
        engine.fragments()  # the uninterrupted run saves at step 5 too: it averages BatchNorm's statistics
        losses += [step(engine, 6)[1]]
        whole = {"at_3": at_3, "at_6": digest(engine), "losses": losses, "weights": weights(engine)}
        engine.close()
        second = restored(folder / case, zero, precision)
        parts: dict[str, Any] = {
            "at_3": digest(second),
            "losses": losses[:3] + [step(second, n)[1] for n in (4, 5)],
        }
        save(second, folder / case, 5)
        second.close()
        third = restored(folder / case, zero, precision)
        parts["losses"] += [step(third, 6)[1]]
        parts["at_6"] = digest(third)
        third.close()
        out[case] = {"whole": whole, "parts": parts}
    return out


def convert(folder: Path) -> dict[str, Any]:
    """Stage 2's checkpoint into every layout and back to disk, and on to step 6."""
    out: dict[str, Any] = {}
    source = build("zero2")
    for n in (1, 2, 3):
        step(source, n)
    save(source, folder / "convert-source", 3)
    for n in (4, 5, 6):
        step(source, n)
    out["source"] = weights(source)
    source.close()
    chain = folder / "convert-source"
    for zero in ("zero3", "zero1", "zero0", "zero3_offload", "zero2"):
        engine = restored(chain, zero)
        chain = folder / f"convert-{zero}"
        save(engine, chain, 3)
        for n in (4, 5, 6):
            step(engine, n)
        out[zero] = weights(engine)
        engine.close()
    return out


def skip(folder: Path) -> dict[str, Any]:
    """A NaN or infinite gradient of one rank in step 2, and a veto of the caller in step 4."""
    out: dict[str, Any] = {}
    for zero in LAYOUTS:
        engine = build(zero)
        norms = [float(step(engine, 1)[0].grad_norm)]
        before = digest_of_trained(engine)
        flags = []
        for poison in (float("nan"), float("inf")):
            result, _ = step(engine, 2, poison)
            flags.append(bool(result.finite))
        untouched = before == digest_of_trained(engine)
        norms.append(float(step(engine, 3)[0].grad_norm))
        before = digest_of_trained(engine)
        vetoed = veto(engine, 4)
        untouched = untouched and before == digest_of_trained(engine)
        norms.append(float(step(engine, 5)[0].grad_norm))
        updates = engine.layout_state()["updates"]
        out[zero] = {
            "flags": flags,
            "vetoed": vetoed,
            "untouched": untouched,
            "norms": norms,
            "updates": updates,
            "weights": weights(engine),
        }
        engine.close()
    return out


def veto(engine: Engine, number: int) -> bool:
    """Makes a step with finite gradients that the caller forbids; returns its flag."""
    for micro in range(BATCH // (MICRO * dist.world_size())):
        loss = engine(Request(micro_batch(number, micro * dist.world_size() + dist.rank())))["toy"]
        engine.backward(loss.sum)
    return bool(engine.step(1.0, finite=torch.tensor(False)).finite)


def digest_of_trained(engine: Engine) -> str:
    """Returns a hash of masters, moments, running statistics and module copies."""
    mine = hashlib.sha256()
    for f in engine.fragments():
        if f.name != "seen":  # counts forwards, also those of a skipped step
            mine.update(f.tensor.cpu().numpy().tobytes())
    for _, tensor in engine.weights():
        mine.update(tensor.numpy().tobytes())
    return "/".join(dist.gather_objects(mine.hexdigest()))


def one(folder: Path) -> dict[str, Any]:
    """One process: 3 steps, save, 3 more; no dropout, no batch statistics."""
    engine = build("zero1", dropout=0.0, statistics=False)
    for n in (1, 2, 3):
        step(engine, n)
    save(engine, folder / "one", 3)
    losses = [step(engine, n)[1] for n in (4, 5, 6)]
    return {"losses": losses, "weights": weights(engine)}


def two(folder: Path) -> dict[str, Any]:
    """Two processes go on from one's checkpoint, in stage 3, and save again at step 4."""
    engine = restored(folder / "one", "zero3", dropout=0.0, statistics=False)
    save(engine, folder / "two", 3)
    losses = [step(engine, 4)[1]]
    save(engine, folder / "two", 4)
    losses += [step(engine, n)[1] for n in (5, 6)]
    return {"losses": losses, "weights": weights(engine), "damaged": damaged(folder)}


def damaged(folder: Path) -> dict[str, Any]:
    """The newest checkpoint's second shard loses a bit: only one rank hashes it, and both fall back."""
    shard = folder / "two" / "step-00000004" / "rank-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    dist.barrier(60)
    if dist.rank() == 0:
        broken = content.copy()
        broken[-3] ^= 4
        shard.write_bytes(broken)
    dist.barrier(60)
    store = CheckpointStore(folder / "two")
    checkpoint = store.load()
    store.close()
    assert checkpoint is not None
    steps = dist.gather_objects(checkpoint.step)
    dist.barrier(60)
    if dist.rank() == 0:
        shard.write_bytes(content)
    return {"steps": steps}


def back(folder: Path) -> dict[str, Any]:
    """One process goes on from the two's checkpoint of step 4, in stage 0."""
    engine = restored(folder / "two", "zero0", dropout=0.0, statistics=False)
    save(engine, folder / "back", 4)
    losses = [step(engine, n)[1] for n in (5, 6)]
    return {"losses": losses, "weights": weights(engine)}


THEMES = {f.__name__: f for f in (resume, convert, skip, one, two, back)}

if __name__ == "__main__":
    join(120)
    for theme in sys.argv[1].split(","):
        results = THEMES[theme](Path(sys.argv[2]))
        if dist.rank() == 0:
            (Path(sys.argv[2]) / f"{theme}.json").write_text(json.dumps(results))
    dist.barrier(60)
    leave(0)  # libraries have been seen to abort in their exit handlers
