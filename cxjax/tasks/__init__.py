"""Tasks: where batches come from and how they are evaluated."""
