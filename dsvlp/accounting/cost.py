"""The arithmetic of costs: parameters and FLOPs of the layers that all systems are made of.

One multiply-add is 2 FLOP; normalisations, activations and additions are left out, as usual.

Legend: n tokens, d width, f feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a component costs.

    Attributes:
        parameters: trainable numbers.
        forward: FLOP of one pair's forward pass.
    """

    parameters: int = 0
    forward: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.forward + other.forward)

    def __rmul__(self, times: int) -> Cost:
        return Cost(times * self.parameters, times * self.forward)

    def run(self, times: float) -> Cost:
        """Returns the same component where a pair runs it `times` times."""
        return Cost(self.parameters, times * self.forward)


def linear(inputs: int, outputs: int, rows: float, *, bias: bool = True) -> Cost:
    """Returns the cost of a matrix product on `rows` tokens."""
    return Cost(inputs * outputs + bias * outputs, 2.0 * inputs * outputs * rows)


def norm(d: int) -> Cost:
    """Returns the cost of a LayerNorm or an affine BatchNorm: scale and shift."""
    return Cost(2 * d)


def table(rows: int, d: int) -> Cost:
    """Returns the cost of an embedding table; a look-up is free."""
    return Cost(rows * d)


def attention(d: int, queries: float, keys: float) -> Cost:
    """Returns the cost of multi-head attention with its four projections."""
    return cross_attention(d, d, queries, keys)


def cross_attention(d: int, context: int, queries: float, keys: float) -> Cost:
    """Returns the cost of attention of width d to states of another width, `context`."""
    projections = 2 * linear(d, d, queries) + 2 * linear(context, d, keys)
    return projections + Cost(0, 4.0 * queries * keys * d)


def feed_forward(d: int, f: int, n: float) -> Cost:
    """Returns the cost of the two-layer perceptron of a block."""
    return linear(d, f, n) + linear(f, d, n)


def block(d: int, f: int, n: float) -> Cost:
    """Returns the cost of a Transformer block: self-attention, perceptron, two norms."""
    return attention(d, n, n) + feed_forward(d, f, n) + 2 * norm(d)


def pooler(inputs: int, d: int, n: float) -> Cost:
    """Returns the cost of a transform of all tokens and a dense layer on the pooled one (FIBER, 1.5)."""
    return linear(inputs, d, n) + linear(d, d, 1)
