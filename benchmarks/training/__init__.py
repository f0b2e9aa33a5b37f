"""Benchmarks of training: throughput, a merge at scale, the ablation in the small."""
