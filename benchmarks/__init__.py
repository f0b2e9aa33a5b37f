"""Benchmarks that are run by hand; their results go to docs/measurements."""
