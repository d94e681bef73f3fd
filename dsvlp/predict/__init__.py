"""Trained systems outside of training: `dsvlp.load(DIR)` of a run or an export. Floor 5."""

from dsvlp.predict.model import Predictor, load

__all__ = ["Predictor", "load"]
