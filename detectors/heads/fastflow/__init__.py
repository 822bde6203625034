"""FastFlow."""

from detectors.heads.fastflow.head import Fastflow

__all__ = ["Fastflow"]
