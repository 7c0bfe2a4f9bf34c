"""Many cases: workers, clusters, resuming and the tables of a batch."""
