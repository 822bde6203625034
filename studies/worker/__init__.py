"""What a worker does: the job, the trial, and what trials share on disk."""
