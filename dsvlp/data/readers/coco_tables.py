"""COCO's label tables of segmentation maps. Names stand comma-separated in the order of their ids.

Sources: COCO-Stuff's `labels.txt` (Caesar et al. 2018) and the categories of the official
`panoptic_val2017.json`; both share the 80 things.
"""

from __future__ import annotations

from dsvlp.types import LabelTable

# Ids 1..182 of COCO-Stuff: things 1..91 (eleven of them never annotated), stuff 92..182.
_STUFF = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street
sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard,
sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, plate,
wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, mirror, dining table, window, desk, toilet, door,
tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, blender,
book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush, banner, blanket, branch,
bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud,
napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad,
river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs,
stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick,
wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops,
window-blind, window-other, wood
"""

# Ids above 90 of the panoptic task, where COCO-Stuff's classes were merged.
_PANOPTIC_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118
floor-wood, 119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141
pillow, 144 platform, 145 playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea,
156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176 wall-tile, 177
wall-wood, 178 water-other, 180 window-blind, 181 window-other, 184 tree-merged, 185 fence-merged, 186
ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged, 190 floor-other-merged, 191
pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged, 196
food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""

_NEVER_ANNOTATED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


def coco_stuff_json() -> LabelTable:
    """Returns the table of ids 1..182, 0 unlabelled (COCO-Stuff's json and masks)."""
    names = _names(_STUFF)
    return LabelTable("coco_stuff_json", tuple(range(1, len(names) + 1)), names, 0)


def coco_stuff_png() -> LabelTable:
    """Returns the table of ids 0..181, 255 unlabelled (`stuffthingmaps_trainval2017`)."""
    names = _names(_STUFF)
    return LabelTable("coco_stuff_png", tuple(range(len(names))), names, 255)


def coco_panoptic_133() -> LabelTable:
    """Returns the table of the 133 panoptic category ids 1..200, 0 unlabelled."""
    things = enumerate(_names(_STUFF)[:90], 1)
    classes = {number: name for number, name in things if number not in _NEVER_ANNOTATED}
    for entry in _names(_PANOPTIC_STUFF):
        number, _, name = entry.partition(" ")
        classes[int(number)] = name
    return LabelTable("coco_panoptic_133", tuple(classes), tuple(classes.values()), 0)


TABLES = {
    "coco_panoptic_133": coco_panoptic_133,
    "coco_stuff_png": coco_stuff_png,
    "coco_stuff_json": coco_stuff_json,
}
