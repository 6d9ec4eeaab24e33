"""Benchmarks; each is a module that prints figures beside a named peer of the same run."""
