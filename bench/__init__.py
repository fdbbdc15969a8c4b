"""Measures what the README quotes; ``python -m bench --help``, method in docs/benchmarks.md."""
