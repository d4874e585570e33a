"""Is it fast? Benchmarks that run on a user's own hardware."""
