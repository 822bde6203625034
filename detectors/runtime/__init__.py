"""A fitted detector in use: artifact, export, verdicts, overlays, latency."""
