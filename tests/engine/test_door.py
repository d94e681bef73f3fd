from __future__ import annotations

import torch
from torch import nn

from dsvlp.engine.door import Door, pack, unpack
from dsvlp.types import Encoded, Loss, States


def nested() -> dict[str, object]:
    states = States(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), (torch.zeros(1),))
    return {"encoded": Encoded(image=states), "score": (torch.tensor(2.0), [torch.tensor(3.0)]), "name": "x"}


def test_packing_and_unpacking_gives_the_same_values_back() -> None:
    value, tensors = nested(), list[torch.Tensor]()
    again = unpack(pack(value, tensors), tuple(tensors))
    assert len(tensors) == 5
    assert again["encoded"].image.tokens is value["encoded"].image.tokens  # type: ignore[attr-defined]
    assert again["encoded"].text is None and again["name"] == "x"
    assert again["score"][1][0].item() == 3.0 and isinstance(again["score"], tuple)


def test_every_tensor_of_a_loss_goes_through_the_door_flat() -> None:
    class System(nn.Module):
        def forward(self, request: float) -> dict[str, Loss]:
            one = torch.tensor(request, requires_grad=True)
            return {
                "mlm": Loss(one * 2, torch.tensor(1.0), {"accuracy": (torch.tensor(0.5), torch.tensor(1.0))})
            }

    door = Door(System())
    out = door(3.0)
    assert len(out) == 4 and all(isinstance(t, torch.Tensor) for t in out) and out[0].requires_grad
    loss = unpack(door.shape_of_output, out)["mlm"]
    assert loss.sum.item() == 6.0 and float(loss.metrics["accuracy"][0]) == 0.5
