"""The service behind ``study serve``: a detector over HTTP that follows its registry alias."""
