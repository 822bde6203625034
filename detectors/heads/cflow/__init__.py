"""CFlow-AD."""

from detectors.heads.cflow.head import Cflow

__all__ = ["Cflow"]
