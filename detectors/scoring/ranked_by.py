"""What detectors are ranked by: a module without torch, for commands that only print."""

from __future__ import annotations

from collections.abc import Mapping

RANKING_SCORE = "ranking_score"
"""Name of the figure of painted defects; `detectors.scoring.ranking` computes it."""


def ranks_by(metrics: Mapping[str, float], prefix: str) -> str:
    """The metric by which a detector is ranked: ``val/ranking_score`` where the defects are painted, else ``val/image_auroc``.

    Args:
        metrics: by name with the prefix of their set.
        prefix: ``val`` or ``test``.
    """
    painted = f"{prefix}/{RANKING_SCORE}"
    return painted if painted in metrics else f"{prefix}/image_auroc"
