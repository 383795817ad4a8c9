"""Differential privacy: the noise on sums, and the account of what it promises. NumPy and SciPy only."""
