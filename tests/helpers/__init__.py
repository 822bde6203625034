"""What tests share: small data sets, studies that run in a moment, servers and browsers that are started for real."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""
