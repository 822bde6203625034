"""Normalizing flows: coupling blocks and what the heads made of them share."""
