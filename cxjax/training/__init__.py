"""Training: a run as a specification, its compiled programs, its loop."""
