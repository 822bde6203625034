"""Pretrained networks that images are seen through, and where their weights come from."""
