"""Which images, captions and partners stand in a global batch, as pure functions of (seed, step).

Every rank plans the whole global batch and takes its own places of it, so that a sample's place,
its partner and its keys depend neither on the world size nor on the accumulation. A global batch of
`global_pairs` pairs is `global_pairs / captions_per_image` groups, dealt whole.

Legend: G groups (images) of k captions, P = G k pairs, group-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from dsvlp.data.dataset import Dataset
from dsvlp.data.frames import Shape
from dsvlp.data.mixture import Mixture
from dsvlp.data.order import Order
from dsvlp.data.partner import mismatched_half, partners
from dsvlp.data.units import Units
from dsvlp.seed import fold, integers, key_of


@dataclass(frozen=True)
class Groups:
    """G groups of a stream.

    Attributes:
        source, epoch, unit: int64 [G], where the group comes from; epochs count by source.
        rows: int64 [G], image row in its source.
        images: int64 [G], a hash of the image's content, equal wherever the same image stands.
        samples: int64 [G, k] in its source.
        weight: float32 [G, k].
    """

    source: np.ndarray
    epoch: np.ndarray
    unit: np.ndarray
    rows: np.ndarray
    images: np.ndarray
    samples: np.ndarray
    weight: np.ndarray

    def take(self, places: np.ndarray | slice) -> Groups:
        """Returns the groups at `places`."""
        return Groups(*(getattr(self, field.name)[places] for field in fields(self)))

    def put(self, place: int, other: Groups) -> None:
        """Overwrites the group at `place` with the one group of `other`."""
        for field in fields(self):
            getattr(self, field.name)[place] = getattr(other, field.name)[0]


@dataclass(frozen=True)
class Dealt:
    """The groups of a global batch.

    Attributes:
        groups: G groups; those from `real` on only fill the last batch.
        real: groups that count.
        canvas: height and width of their images, pixels; None for a model of objects.
    """

    groups: Groups
    real: int
    canvas: Shape | None


@dataclass(frozen=True)
class Plan:
    """A global batch, or a rank's micro-batch of one.

    Attributes:
        groups: its G groups.
        partner_source, partner_sample, partner_image: int64 [P], whose text stands in where a pair is
            mismatched, and the content hash of the image that text belongs to.
        matched: bool [P].
        partnerless: pairs of the global batch that had to stay matched, because no other image was found
            for them.
        canvas: height and width of the global batch's images, pixels; None for a model of objects.
    """

    groups: Groups
    partner_source: np.ndarray
    partner_sample: np.ndarray
    partner_image: np.ndarray
    matched: np.ndarray
    partnerless: int = 0
    canvas: Shape | None = None

    def take(self, begin: int, end: int) -> Plan:
        """Returns the part of groups begin .. end-1."""
        captions = self.groups.samples.shape[1]
        pairs = slice(begin * captions, end * captions)
        return replace(
            self,
            groups=self.groups.take(slice(begin, end)),
            partner_source=self.partner_source[pairs],
            partner_sample=self.partner_sample[pairs],
            partner_image=self.partner_image[pairs],
            matched=self.matched[pairs],
        )


class Stream:
    """The endless stream of groups of several sources.

    Args:
        datasets, weights: the sources of the mixture.
        captions: captions a group.
        open_shards: window of the order.
        seed: every draw depends on it.
        tasks: the tasks whose samples are dealt.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Sequence[float],
        captions: int,
        open_shards: int,
        seed: int,
        tasks: tuple[str, ...] = ("caption",),
    ) -> None:
        self._datasets, self._seed = datasets, seed
        self._units = [Units(dataset, captions, tasks) for dataset in datasets]
        self._orders = [
            Order(units.per_shard, open_shards, key_of(seed, "order", number))
            for number, units in enumerate(self._units)
        ]
        self._mixture = Mixture(weights)
        self._captions = captions

    @property
    def groups_an_epoch(self) -> list[int]:
        """Returns each source's groups in one epoch."""
        return [units.count for units in self._units]

    def at(self, positions: np.ndarray) -> Groups:
        """Returns the groups at positions int64 [G] of the stream."""
        sources, own = self._mixture.at(positions)
        epoch, unit = np.empty_like(own), np.empty_like(own)
        for number, order in enumerate(self._orders):
            here = sources == number
            epoch[here], unit[here] = order.at(own[here])
        return self.look_up(sources, epoch, unit)

    def look_up(self, sources: np.ndarray, epoch: np.ndarray, unit: np.ndarray) -> Groups:
        """Returns the groups of these units, their captions permuted as in `epoch`."""
        shape = (len(unit), self._captions)
        rows, images = np.empty_like(unit), np.empty_like(unit)
        samples, weight = np.empty(shape, np.int64), np.empty(shape, np.float32)
        for number in np.unique(sources):
            here = sources == number
            keys = fold(np.full(int(here.sum()), key_of(self._seed, int(number), "groups")), epoch[here])
            found = self._units[number].captions(unit[here], keys)
            rows[here], samples[here], weight[here] = found.rows, found.samples, found.weight
            hashes = np.ascontiguousarray(self._datasets[number].hashes[found.rows, :8])
            images[here] = hashes.view("<i8")[:, 0]
        return Groups(sources, epoch, unit, rows, images, samples, weight)

    def sizes(self, groups: Groups) -> np.ndarray:
        """Returns int64 [G, 2]: height and width in pixels of the groups' images."""
        out = np.empty((len(groups.rows), 2), np.int64)
        for number in np.unique(groups.source):
            here = groups.source == number
            out[here] = self._datasets[number].sizes(groups.rows[here])
        return out

    def substitute(self, groups: Groups, attempt: int) -> Groups:
        """Returns the group that takes the place of one whose image is bad, drawn in its own source.

        A pure function of the group and the attempt, hence the same on a resume and on any rank.

        Args:
            groups: one group, G = 1.
            attempt: 0, 1, ... as long as substitutes are bad too.
        """
        source = int(groups.source[0])
        key = key_of(self._seed, source, int(groups.epoch[0]), int(groups.unit[0]), attempt, "substitute")
        unit = integers(np.array([key]), "substitute", 1, self._units[source].count)[0]
        return self.look_up(groups.source, groups.epoch, unit)

    def image_keys(self, groups: Groups) -> np.ndarray:
        """Returns int64 [G]: a hash of (seed, epoch, image content, source and unit that brought it)."""
        key = fold(np.array([key_of(self._seed, "image")]), groups.epoch)
        return fold(fold(fold(key, groups.images), groups.source), groups.unit)

    def pair_keys(self, groups: Groups) -> np.ndarray:
        """Returns int64 [P]: a hash of (seed, epoch, source, sample)."""
        key = fold(fold(np.array([key_of(self._seed, "pair")]), groups.epoch), groups.source)
        return fold(key[:, None], groups.samples).reshape(-1)


def plan(dealt: Dealt, key: int, swap: bool) -> Plan:
    """Returns the global batch of dealt groups, which become its own.

    Args:
        dealt: the groups; those that only fill the last batch get weight 0 and take no part in the choice of
            partners.
        key: a hash of (seed, step).
        swap: False where no objective needs partners: every pair is then matched.
    """
    groups, real = dealt.groups, dealt.real
    groups.weight[real:] = 0
    captions = groups.samples.shape[1]
    pairs = groups.samples.size
    partner, matched, partnerless = np.arange(pairs), np.ones(pairs, bool), 0
    if swap:
        count = real * captions
        partner[:count], found = partners(key, np.repeat(groups.images[:real], captions))
        mismatched = mismatched_half(key, count)
        matched[:count] = ~(mismatched & found)
        partnerless = int((mismatched & ~found).sum())
    return Plan(
        groups,
        np.repeat(groups.source, captions)[partner],
        groups.samples.reshape(-1)[partner],
        np.repeat(groups.images, captions)[partner],
        matched,
        partnerless,
        canvas=dealt.canvas,
    )
