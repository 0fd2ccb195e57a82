"""The reference policy as the run sees it, where the ranks of the learner hold it."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.learners.base import Learner
from shoal.references.base import Reference, unscored_segments
from shoal.types import Group


class RanksReference(Reference):
    """Has the ranks score. It does not follow the policy, so that there is nothing to save."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def score(self, groups: Sequence[Group]) -> None:
        segments = unscored_segments(groups)
        for segment, row in zip(segments, self.learner.reference_logprobs(segments), strict=True):
            segment.ref_logprobs = row
