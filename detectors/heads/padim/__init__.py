"""PaDiM."""
