"""Is a kernel right? Its result is compared with the exact one from NumPy, within bounds that are derived, not picked.

operations         the registry: every operation, with its exact result, bound and inputs
formats            floating-point formats as numbers
bounds             how far a good computation may be from the exact result; `attention_bounds` for attention
verdicts           compares a result with its bounds
drawing            draws awkward inputs, and fixed random ones
guards             arrays surrounded by guards, which expose reads and writes out of bounds
check              checks any function
shrinking          reduces a failing input to a smaller one
report             what a check found
verify             checks every kernel in every dtype; `verify_model` checks a whole model, layer by layer
"""
