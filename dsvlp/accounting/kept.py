"""What layers keep in memory between forward and backward, in bytes: autograd's saved tensors by formula.

A matrix product keeps its input, a LayerNorm its input and two numbers a row, attention its query, key,
value and output, GELU its input; additions, and a result that nobody reads again, keep nothing. Under
bfloat16 autocast the residual stream and what norms read stay in fp32, and each product that reads an
fp32 state makes a bf16 copy of its own. Read off torch's autograd formulas, and measured on the CPU by a
test (`torch.autograd.graph.saved_tensors_hooks`, each storage once).

Legend: n tokens, m tokens that are read, d width, f feed-forward width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Mode = Literal["none", "selective", "full"]
STATE = 4  # bytes of a number of the residual stream, and of what a norm reads


@dataclass(frozen=True)
class Rule:
    """How a number is kept.

    Attributes:
        half: bfloat16 autocast; else everything is fp32.
        cpu: as torch keeps it on a CPU, where attention with dropout or with a learnt bias is not fused and
            dropout keeps its noise as numbers; else as on a GPU.
    """

    half: bool
    cpu: bool = False

    @property
    def product(self) -> int:
        """Bytes of a number that comes out of a matrix product."""
        return 2 if self.half else 4

    def read(self, products: int = 1) -> int:
        """Returns the bytes that are kept of a number of an fp32 state read by so many products."""
        return 2 * products if self.half else 4

    def again(self, products: int) -> int:
        """Returns what further products add to a number that is kept already."""
        return 2 * products if self.half else 0

    def norm(self, n: float, d: int) -> float:
        """Returns what a LayerNorm keeps: its input, mean and deviation."""
        return n * (STATE * d + 8)

    def dropout(self, numbers: float, share: float) -> float:
        """Returns what dropout keeps: a truth value a number on a GPU."""
        return (self.product if self.cpu else 1) * numbers if share else 0.0

    def mixing(self, n: float, m: float, d: int, heads: int, share: float = 0.0) -> float:
        """Returns what attention keeps without its inputs: query, key, value, output, and the row sums.

        Not fused, all probabilities stand in the place of the sums, with the noise and dropped ones too.

        Args:
            n: tokens that look.
            m: tokens that are looked at.
            d: width.
            heads: H.
            share: of the probabilities that is dropped.
        """
        states = self.product * 2 * (n + m) * d
        if self.cpu and share:
            return states + 3 * self.product * n * m * heads
        return states + 4 * n * heads

    def feed_forward(self, n: float, d: int, f: int, share: float = 0.0) -> float:
        """Returns what the perceptron keeps: its input, that of GELU and GELU's result."""
        return n * (self.read() * d + 2 * self.product * f) + self.dropout(n * d, share)

    def post_norm_block(self, n: float, d: int, f: int, heads: int, share: float) -> float:
        """Returns what a block of BERT or RoBERTa keeps: its input is read by three products."""
        attention = n * d * self.read(3) + self.mixing(n, n, d, heads, share)
        dropped = self.dropout(n * d, share)
        return attention + dropped + self.norm(n, d) + self.feed_forward(n, d, f, share) + self.norm(n, d)

    def pre_norm_block(self, n: float, d: int, f: int, heads: int) -> float:
        """Returns what a block of a ViT keeps."""
        attention = self.norm(n, d) + n * d * self.read() + self.mixing(n, n, d, heads)
        return attention + self.norm(n, d) + self.feed_forward(n, d, f)


@dataclass(frozen=True)
class Part:
    """A part of a model as a micro-batch runs it.

    Attributes:
        kept: bytes where nothing is recomputed.
        input: bytes of its input, all that is kept of a recomputed one.
        index: its place in its stack of blocks; None where it is never recomputed.
        fixed: bytes of `kept` that do not depend on the rows.
    """

    kept: float
    input: float = 0.0
    index: int | None = None
    fixed: float = 0.0

    def times(self, rows: float, calls: float = 1.0) -> Part:
        """Returns the part for so many rows, in so many calls."""
        return Part(rows * self.kept + calls * self.fixed, rows * self.input, self.index)


@dataclass(frozen=True)
class Activations:
    """What a micro-batch keeps.

    Attributes:
        kept: bytes from the forward to the backward.
        recomputed: bytes of the largest block that is computed again in the backward.
    """

    kept: float
    recomputed: float


def activations(parts: Iterable[Part], mode: Mode) -> Activations:
    """Returns what parts keep under a mode of `layers.recompute`: "selective" recomputes even blocks."""
    kept = recomputed = 0.0
    for part in parts:
        again = part.index is not None and (mode == "full" or (mode == "selective" and part.index % 2 == 0))
        kept += part.input if again else part.kept
        recomputed = max(recomputed, part.kept if again else 0.0)
    return Activations(kept, recomputed)
