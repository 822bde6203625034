"""Painted defects of the second recipe: many kinds, each over a range of sizes and opacities, to rank detectors by."""
