"""GANomaly."""

from detectors.heads.ganomaly.head import Ganomaly

__all__ = ["Ganomaly"]
