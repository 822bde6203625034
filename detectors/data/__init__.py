"""Image sets: readers, split protocols, synthetic defects, the procedural renderer, download and checks."""
