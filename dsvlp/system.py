"""System = a model + the recipe's objectives; `forward(request)` is the only door to its parameters.

ZeRO-3 gathers parameters in forward hooks, so everything that uses one goes through
`engine(request)`: training, evaluation, cached retrieval, and later beam search (`decode_step`)
and sampling. Each request runs the same modules in the same order on every rank.

How the others use the seam. **FIBER**: `mlm.view = "masked"`, `itc.view = itm.view = "clean"`; ITC
offers `similarity` on Passes, ITM asks for the pairs of its hard negatives, and the tops of all fused
pairs run in one call.
**Pixel-BERT**: one view, `fuse` runs the single BERT over text and pixels. **SemVLP**: the mode of
each half of the global batch stands in the view. **VQA, NLVR2**: one task with one clean view.
**Captioning**: a `causal` kind of pass and `DecodeStep` requests. **Detection**: reads
`States.maps` of the fused pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dsvlp import catalog
from dsvlp.errors import RecipeError
from dsvlp.objectives.base import Objective, Targets
from dsvlp.passes import Encoder, Fetch, Passes
from dsvlp.recipe import RoBERTa
from dsvlp.types import Batch, DataFacts, Encoded, Loss, States

if TYPE_CHECKING:
    from dsvlp.objectives.itc import ITC
    from dsvlp.objectives.itm import ITM
    from dsvlp.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """A micro-batch after `prepare`: its views, and each objective's targets."""

    views: dict[str, Batch]
    targets: dict[str, Targets]

    def counts(self, names: list[str]) -> Tensor:
        """Returns the objectives' counts, float32 [K], on the batch's device."""
        return torch.stack([self.targets[name].count for name in names])


@dataclass(frozen=True)
class TrainRequest:
    """Losses of a prepared micro-batch; also used, without gradient, for validation.

    Attributes:
        prepared: the micro-batch.
        fetch: brings ITM's negatives of ITC's queue within the step, where the recipe says so; training only.
    """

    prepared: Prepared
    fetch: Fetch | None = None


@dataclass(frozen=True)
class ImageRequest:
    """Image states below the fusion, of [I, 3, H, W]."""

    images: Tensor
    image_mask: Tensor | None = None


@dataclass(frozen=True)
class TextRequest:
    """Text states below the fusion, of [T, L]."""

    text_ids: Tensor
    text_mask: Tensor


@dataclass(frozen=True)
class MatchRequest:
    """Fused states and match scores of aligned rows of states that were encoded before."""

    image: States
    text: States


@dataclass(frozen=True)
class EmbedRequest:
    """ITC's unit vectors of prefixes that were encoded before; either may be None."""

    image: States | None = None
    text: States | None = None


Request = TrainRequest | EmbedRequest | ImageRequest | TextRequest | MatchRequest


class System(nn.Module):
    """The trained module: names of its parameters are the checkpoint's names.

    Args:
        model: images and texts in, `Encoded` out; no loss, no rank, no configuration.
        objectives: name -> objective, in the order of preparation.
        share_prefixes: see `dsvlp.passes`.
    """

    def __init__(
        self, model: nn.Module, objectives: dict[str, Objective], share_prefixes: bool = True
    ) -> None:
        super().__init__()
        self.share_prefixes = share_prefixes
        self.model = model
        self.objectives = nn.ModuleDict(objectives)

    def prepare(self, batch: Batch) -> Prepared:
        """Returns views and targets of a micro-batch. Uses no parameter, so it may run outside `forward`."""
        views: dict[str, Batch] = {}
        targets: dict[str, Targets] = {}
        for name, objective in self._objectives():
            view = views.get(objective.view, batch)
            views[objective.view], targets[name] = objective.prepare(view)
        return Prepared(views, targets)

    def forward(
        self, request: Request
    ) -> dict[str, Loss] | States | tuple[Tensor | None, Tensor | None] | tuple[Encoded, Tensor]:
        """Returns the losses by objective, states below the fusion, (image, text) vectors [., D], or (fused
        states, match logit [B])."""
        model = cast(Encoder, self.model)
        if isinstance(request, TrainRequest):
            passes = Passes(model, request.prepared.views, self.share_prefixes, request.fetch)
            return self._losses(passes, request.prepared.targets)
        if isinstance(request, ImageRequest):
            return model.encode_image(request.images, request.image_mask)
        if isinstance(request, TextRequest):
            return model.encode_text(request.text_ids, request.text_mask)
        if isinstance(request, EmbedRequest):
            itc = cast("ITC", self.objectives["itc"])
            image = None if request.image is None else itc.embed_image(model.finish_image(request.image))
            text = None if request.text is None else itc.embed_text(model.finish_text(request.text))
            return image, text
        encoded = model.fuse(request.image, request.text)
        return encoded, cast("ITM", self.objectives["itm"]).score(encoded)

    def _objectives(self) -> list[tuple[str, Objective]]:
        return [(name, cast(Objective, module)) for name, module in self.objectives.items()]

    def _losses(self, passes: Passes, targets: dict[str, Targets]) -> dict[str, Loss]:
        begun = [(n, o, o.begin(passes, targets[n])) for n, o in self._objectives()]
        # What began early is joined last, behind the passes of the others.
        begun.sort(key=lambda entry: entry[2] is not None)
        return {name: objective.loss(passes, targets[name], work) for name, objective, work in begun}


def build(recipe: Recipe, facts: DataFacts) -> System:
    """Returns the system of a recipe, its initial weights drawn from `recipe.seed`.

    Raises:
        RecipeError: a tokenizer, a label table or a published weight that does not fit.
    """
    vocabulary = recipe.model.text.vocabulary
    if facts.vocabulary > vocabulary:
        raise RecipeError(
            f"the tokenizer has {facts.vocabulary} token ids, model.text.vocabulary is {vocabulary}",
            "a model vocabulary at least as large as the tokenizer's",
            f"Set model.text.vocabulary={facts.vocabulary} or choose another data.tokenizer",
        )
    text = recipe.model.text
    if isinstance(text, RoBERTa) and text.padding_id != facts.pad_id:
        raise RecipeError(
            f"the tokenizer pads with id {facts.pad_id}, model.text.padding_id is {text.padding_id}",
            "one padding id: a RoBERTa counts its positions by it",
            f"Set model.text.padding_id={facts.pad_id} or choose another data.tokenizer",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = catalog.SYSTEMS[recipe.model.system].load().from_recipe(recipe.model)
        model.set_activation_checkpointing(recipe.engine.activation_checkpointing)
        objectives = {
            name: catalog.OBJECTIVES[name].load().from_recipe(table, recipe.model, model, facts)
            for name, table in recipe.objectives.enabled().items()
        }
        for objective in objectives.values():
            objective.told(recipe.batch)
    return System(model, objectives, recipe.engine.share_prefixes)
