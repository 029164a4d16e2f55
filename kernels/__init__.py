"""The same forward pass in Triton: each operation the twin of a function in `ernie_m.reference`."""
