"""The heads, one folder each; `detectors.catalog` finds them."""
