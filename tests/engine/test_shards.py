from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsvlp.engine.fragments import Fragment
from dsvlp.engine.shards import (
    FORMAT,
    MANIFEST,
    STATE,
    CheckpointReader,
    hash_file,
    piece_list,
    read_manifest,
    tensor_entries,
    write_file,
    write_manifest,
    write_shard,
)
from dsvlp.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8]


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (), (1,), (2, 1, 7), (4, 4), (11,), (0, 3)]
    return {
        f"t{i}.weight": (torch.randn(shape, generator=generator) * 3).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, DTYPES, strict=True))
    }


def cut(tensors: dict[str, torch.Tensor], world: int, seed: int) -> list[list[Fragment]]:
    """Returns each rank's fragments: every tensor cut at random places, the pieces dealt at random."""
    draw = random.Random(seed)
    ranks: list[list[Fragment]] = [[] for _ in range(world)]
    for name, tensor in tensors.items():
        flat, shape = tensor.flatten(), tuple(tensor.shape)
        places = sorted(draw.sample(range(1, len(flat)), min(world, len(flat)) - 1)) if len(flat) > 1 else []
        for low, high in zip([0, *places], [*places, len(flat)], strict=True):
            ranks[draw.randrange(world)].append(Fragment(name, "weight", low, flat[low:high].clone(), shape))
    return ranks


def write(folder: Path, ranks: list[list[Fragment]], state: bytes = b'{"a": 1}') -> None:
    """Writes a checkpoint by the parts of the format alone."""
    folder.mkdir()
    files, pieces = {}, []
    for rank, fragments in enumerate(ranks):
        file = f"rank-{rank}.safetensors"
        files[file] = write_shard(folder / file, fragments).model_dump()
        pieces += piece_list(fragments, file)
    files[STATE] = write_file(folder / STATE, [state]).model_dump()
    body = {
        "format": FORMAT,
        "step": 3,
        "world": len(ranks),
        "files": files,
        "tensors": tensor_entries(pieces),
    }
    write_manifest(folder / MANIFEST, body)


def test_shards_are_safetensors(tmp_path: Path) -> None:
    fragments = cut(tensors(), 1, 0)[0]
    entry = write_shard(tmp_path / "x.safetensors", fragments)
    assert entry == hash_file(tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    for fragment in fragments:
        assert torch.equal(loaded[f"{fragment.name}|weight|0"], fragment.tensor)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_any_part_of_any_tensor_is_read_from_pieces_cut_anywhere(tmp_path: Path, world: int) -> None:
    originals = tensors()
    write(tmp_path / "c", cut(originals, world, world))
    reader = CheckpointReader(tmp_path / "c", read_manifest(tmp_path / "c"))
    assert reader.state == {"a": 1}
    assert reader.table() == {(name, "weight"): tuple(t.shape) for name, t in originals.items()}
    for name, tensor in originals.items():
        assert torch.equal(reader.whole(name, "weight"), tensor)
        for low in range(tensor.numel() + 1):
            for high in range(low, tensor.numel() + 1):
                assert torch.equal(reader.read(name, "weight", low, high - low), tensor.flatten()[low:high])
    reader.close()


@pytest.mark.parametrize("damage", ["gap", "overlap", "short", "file", "dtype", "size", "format", "path"])
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "c", cut(tensors(), 2, 0))
    manifest = read_manifest(tmp_path / "c").model_dump(mode="json")
    entry = manifest["tensors"][0]
    if damage == "gap":
        entry["pieces"][0][0] += 1
    elif damage == "overlap":
        entry["pieces"].append(entry["pieces"][0])
    elif damage == "short":
        entry["pieces"].pop()
    elif damage == "file":
        entry["pieces"][0][2] = "other.safetensors"
    elif damage == "dtype":
        entry["dtype"] = "F31"
    elif damage == "size":
        entry["shape"], entry["pieces"] = [1 << 40], [[0, 1 << 40, "rank-0.safetensors"]]
    elif damage == "format":
        manifest["format"] = 2
    else:
        manifest["files"]["../state.json"] = manifest["files"].pop(STATE)
    write_manifest(tmp_path / "c" / MANIFEST, manifest)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(tmp_path / "c")


def test_a_damaged_manifest_is_an_error_of_ours_whatever_the_damage(tmp_path: Path) -> None:
    write(tmp_path / "c", cut(tensors(), 2, 0))
    path = tmp_path / "c" / MANIFEST
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(200):
        broken = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(broken))
            kind = draw.random()
            if kind < 0.4:
                broken[place] ^= 1 << draw.randrange(8)
            elif kind < 0.7:
                del broken[place:]
                broken += b"\n"
            else:
                broken[place:place] = draw.randbytes(draw.randint(1, 9))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            read_manifest(tmp_path / "c")


def test_a_shard_whose_header_lies_is_an_error_before_memory_is_spent(tmp_path: Path) -> None:
    for number, head in enumerate([(1 << 62), (1 << 40), 0, 7]):
        folder = tmp_path / str(number)
        write(folder, cut(tensors(), 1, 0))
        shard = folder / "rank-0.safetensors"
        shard.write_bytes(head.to_bytes(8, "little") + shard.read_bytes()[8:])
        reader = CheckpointReader(folder, read_manifest(folder))
        with pytest.raises(CheckpointError, match=r"rank-0\.safetensors"):
            reader.whole("t0.weight", "weight")


@pytest.mark.parametrize("state", [b"", b"[1]", b"{", b"[" * 100_000])
def test_a_state_that_is_not_a_table_is_named(tmp_path: Path, state: bytes) -> None:
    write(tmp_path / "c", cut(tensors(), 1, 0), state)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        CheckpointReader(tmp_path / "c", read_manifest(tmp_path / "c"))
