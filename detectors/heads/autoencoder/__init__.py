"""Autoencoder."""

from detectors.heads.autoencoder.head import Autoencoder

__all__ = ["Autoencoder"]
