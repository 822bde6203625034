"""``study report``: studies as one HTML file: what was selected, how certain it is, where it fails, what it costs."""
