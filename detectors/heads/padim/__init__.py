"""PaDiM."""

from detectors.heads.padim.head import Padim

__all__ = ["Padim"]
