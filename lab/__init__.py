"""Hosts as network namespaces, for the demo, tests and benchmarks."""
