"""The study file: its sections, checks, overrides, and the images that it names."""
