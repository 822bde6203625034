"""``study serve``: a detector over HTTP, which follows the alias of its registered model."""
