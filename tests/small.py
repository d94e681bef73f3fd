"""What makes `tiny_svl` small enough to be trained within a test, as `key=value`. Torch-free."""

SVL = [
    "model.image_size=32",
    "model.image.layers=1",
    "model.image.width=32",
    "model.text.layers=1",
    "model.text.width=32",
    "model.text.feed_forward=64",
    "model.cross_layers=1",
    "data.synthetic.images=48",
    "data.synthetic.image_size=64",
    "data.workers=1",
    "batch.global_pairs=16",
    "watch.log_every_steps=1",
    "watch.validation_pairs=40",
    "engine.watchdog_seconds=200",
]
