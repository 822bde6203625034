"""SPADE."""

from detectors.heads.spade.head import Spade

__all__ = ["Spade"]
