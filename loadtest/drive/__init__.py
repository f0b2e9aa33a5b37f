"""Sending requests: workloads, the load generator, rounds, a run's folder."""
