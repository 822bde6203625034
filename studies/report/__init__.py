"""A study, or several, as one HTML file that explains itself: what was found, how sure it is, where it fails, what it costs."""
