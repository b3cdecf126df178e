"""Timings against PyTorch: `python tests/benchmarks/run.py --help`. Commands for people, collected by no test."""
