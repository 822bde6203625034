"""Variational autoencoder."""

from detectors.heads.vae.head import Vae

__all__ = ["Vae"]
