"""Counts of images that could not be used, and the limit past which a run stops."""

from __future__ import annotations

import logging
from collections import Counter

from dsvlp.errors import DataError

log = logging.getLogger(__name__)

_NAMED = 20


class BadImages:
    """What a loader met; nothing is silent.

    Args:
        share: `data.max_bad_share`.
        images: images of the data: while fewer were seen, the share is taken of these, so that a bad
            image among the first ten does not stop a run over a million.

    Attributes:
        seen: images asked for.
        reasons: how many were bad, by reason.
    """

    def __init__(self, share: float, images: int) -> None:
        self._share, self._images = share, images
        self.seen = 0
        self.reasons: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Returns how many images were bad."""
        return self.reasons.total()

    def note(self, name: str, reason: str) -> None:
        """Counts and logs a bad image (the first twenty by name).

        Raises:
            DataError: the share of bad images is past the limit.
        """
        self.reasons[reason] += 1
        if self.total <= _NAMED:
            log.warning("bad image %s: %s; another takes its place", name, reason)
        of = max(self.seen, self._images)
        if self.total > self._share * of:
            raise DataError(
                f"{self.total} images cannot be read, the last is {name}: {reason}",
                f"at most data.max_bad_share = {self._share:g} of {of} images",
                "`dsvlp data check` names the damaged file; write it again, or raise data.max_bad_share",
            )
