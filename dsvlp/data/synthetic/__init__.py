"""The synthetic world: drawn scenes of coloured shapes with every kind of annotation the systems need."""

from dsvlp.data.synthetic.ensure import ensure_objects, ensure_world
from dsvlp.data.synthetic.language import colour_words
from dsvlp.data.synthetic.probes import RelationPair, relation_pairs
from dsvlp.data.synthetic.read import read_world
from dsvlp.data.synthetic.world import World
from dsvlp.data.synthetic.write import write_world

__all__ = [
    "RelationPair",
    "World",
    "colour_words",
    "ensure_objects",
    "ensure_world",
    "read_world",
    "relation_pairs",
    "write_world",
]
