from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from dsvlp import recipe as recipes
from dsvlp.engine.optim import GuardedOptimizer, clip, parameter_groups, total_norm
from tests.engine.toy import Toy

RECIPE = recipes.load("tiny_svl", ["optimizer.weight_decay=0.1"])


def ready(module: nn.Module) -> GuardedOptimizer:
    optimizer = GuardedOptimizer(parameter_groups(module, RECIPE))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.create_state(group, parameter)
    return optimizer


def test_each_trained_parameter_is_in_exactly_one_group() -> None:
    toy = Toy(0.0, statistics=True)
    grouped = [p for g in parameter_groups(toy, RECIPE) for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in toy.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})


def test_norms_and_biases_are_not_decayed() -> None:
    toy = Toy(0.0, statistics=True)
    plain = {id(p) for g in parameter_groups(toy, RECIPE) if g["weight_decay"] == 0 for p in g["params"]}
    expected = {n for n, p in toy.named_parameters() if p.requires_grad and p.ndim == 1}
    assert {n for n, p in toy.named_parameters() if id(p) in plain} == expected


def test_a_norm_over_two_dimensions_is_not_decayed() -> None:
    (group,) = parameter_groups(nn.LayerNorm((3, 4)), RECIPE)
    assert group["weight_decay"] == 0 and len(group["params"]) == 2


def test_towers_have_their_own_rate_where_they_start_pretrained() -> None:
    system = nn.ModuleDict(
        {
            "model": nn.ModuleDict(
                {"image": nn.Linear(2, 2), "text": nn.Linear(2, 2), "cross": nn.Linear(2, 2)}
            )
        }
    )
    table = SimpleNamespace(optimizer=RECIPE.optimizer.model_copy(update={"backbone_lr_factor": 0.1}))
    for pretrained, factors in ((False, {1.0: 6}), (True, {0.1: 4, 1.0: 2})):
        table.model = SimpleNamespace(pretrained=pretrained)
        groups = parameter_groups(system, table)  # type: ignore[arg-type]
        found: dict[float, int] = {}
        for group in groups:
            found[group["lr_factor"]] = found.get(group["lr_factor"], 0) + len(group["params"])
        assert found == factors
        optimizer = GuardedOptimizer(groups)
        optimizer.set_lr(0.5)
        assert {g["lr"] / g["lr_factor"] for g in optimizer.param_groups} == {0.5}


def test_the_update_is_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizer = ready(ours)
    table = RECIPE.optimizer
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        betas=table.betas,
        eps=table.eps,
    )
    for step in range(5):
        x = torch.randn(7, 5)
        for module in (ours, theirs):
            module.zero_grad()
            module(x).square().sum().backward()
        optimizer.set_lr(0.01 * (step + 1))
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-6, atol=1e-7)


def test_a_forbidden_step_leaves_weights_moments_and_counter() -> None:
    module = nn.Linear(3, 3)
    optimizer = ready(module)
    optimizer.set_lr(0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = [p.detach().clone() for p in module.parameters()]
    states = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.skip.fill_(1)
    optimizer.step()
    for parameter, old, state in zip(module.parameters(), before, states, strict=True):
        assert torch.equal(parameter, old)
        assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in state.items())


def test_a_missing_gradient_is_zero_and_still_decays() -> None:
    module = nn.Linear(3, 3, bias=False)
    optimizer = ready(module)
    optimizer.set_lr(0.5)
    before = module.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(module.weight, before * (1 - 0.5 * 0.1))


def test_clipping_reaches_the_limit_and_leaves_small_gradients() -> None:
    gradients = [torch.full((3,), 4.0), torch.full((4,), -2.0)]
    norm = total_norm(gradients)
    torch.testing.assert_close(norm, torch.cat(gradients).norm())
    clip(gradients, norm, 0.5)
    torch.testing.assert_close(total_norm(gradients), torch.tensor(0.5))
    small = [torch.full((3,), 0.01)]
    clip(small, total_norm(small), 0.5)
    assert torch.equal(small[0], torch.full((3,), 0.01))


def test_the_norm_of_a_nan_is_not_finite() -> None:
    assert not total_norm([torch.tensor([1.0, float("nan")]), torch.ones(2)]).isfinite()
    assert not total_norm([torch.tensor([float("inf")])]).isfinite()
