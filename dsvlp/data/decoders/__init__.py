"""Backends that decode JPEGs on a GPU, one file each; `open` chooses, `whole` says what they may get."""
