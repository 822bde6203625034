"""PatchCore."""

from detectors.heads.patchcore.head import Patchcore

__all__ = ["Patchcore"]
