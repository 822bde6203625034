"""Looking after a home: what a study needs and is not here, what takes space and may go."""
