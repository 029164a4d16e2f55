"""The ground truth: every layer of ERNIE-M in NumPy."""
