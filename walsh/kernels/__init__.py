"""Kernels: the same function names in one folder per backend."""
