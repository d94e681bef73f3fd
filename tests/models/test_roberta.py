from pathlib import Path

import pytest
import torch
from torch import nn

import dsvlp.vision  # noqa: F401  # isort: skip
from transformers import RobertaConfig, RobertaForMaskedLM

from dsvlp import config
from dsvlp.errors import RecipeError
from dsvlp.models.roberta import RoBERTaTower, seen
from dsvlp.recipe import RoBERTa

SIZES = {"width": 32, "heads": 2, "feed_forward": 64, "vocabulary": 40, "positions": 20, "max_length": 16}


def _published(folder: Path, **changes: int) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 20,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }
    model = RobertaForMaskedLM(RobertaConfig(**{**sizes, **changes})).eval()
    model.save_pretrained(folder)
    return model


def _tower(folder: Path, **changes: int) -> RoBERTaTower:
    tables = {"layers": 3, "weights": str(folder), **SIZES, **changes}
    return RoBERTaTower.from_recipe(config.validate(RoBERTa, tables, "test"), pretrained=True)


def _texts() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    return torch.randint(5, 40, (2, 7)).masked_fill(~mask, 1), mask


def test_the_tower_is_the_first_layers_of_transformers_model(tmp_path: Path):
    theirs = _published(tmp_path)
    ours = _tower(tmp_path).eval()
    ids, mask = _texts()
    expected = theirs.roberta(ids, mask.long(), output_hidden_states=True).hidden_states[3]
    assert torch.allclose(ours(ids, mask)[mask], expected[mask], atol=1e-5)
    assert not any("pooler" in name for name in ours.state_dict())


def test_stepping_through_in_pieces_gives_the_whole(tmp_path: Path):
    _published(tmp_path)
    ours, (ids, mask) = _tower(tmp_path).eval(), _texts()
    for cut in range(4):
        tokens = ours.run(ours.embed(ids), seen(mask), 0, cut)
        assert torch.equal(ours.run(tokens, seen(mask), cut, 3), ours(ids, mask))


def test_a_causal_mask_hides_what_comes_and_what_is_padding():
    keys = seen(torch.tensor([[True, True, False]]), causal=True)
    assert keys.tolist() == [[[[True, False, False], [True, True, False], [True, True, False]]]]


@pytest.mark.parametrize(
    ("published", "named"),
    [
        ({"vocab_size": 41}, "vocab_size 41, the recipe's 40"),
        ({"pad_token_id": 0}, "pad_token_id 0, the recipe's 1"),
        ({"num_hidden_layers": 2}, "2 layers, the recipe's 3"),
    ],
)
def test_other_sizes_are_refused_by_name(tmp_path: Path, published: dict[str, int], named: str):
    _published(tmp_path, **published)
    with pytest.raises(RecipeError, match=named):
        _tower(tmp_path)


def test_a_missing_entry_is_refused_by_name(tmp_path: Path):
    model = _published(tmp_path)
    state = model.state_dict()
    del state["roberta.encoder.layer.1.output.dense.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(RecipeError, match=r"lack .*layer\.1\.output\.dense\.weight"):
        _tower(tmp_path)
