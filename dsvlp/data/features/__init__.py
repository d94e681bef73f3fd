"""Region features: what a detector saw in each image of a data set, in a folder aligned with it by row.

`rows` has the types, `writer` writes them, `stored` reads them; `tsv` and `folder` read what others made.
Nothing is imported here: `manifest` and `rows` serve where there is no torch.
"""
