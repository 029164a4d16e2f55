"""Is a kernel right? Its result against the truth in NumPy, within bounds that are derived, not picked.

operations         the registry: every operation, with its truth, bound and inputs
formats            floating-point formats as numbers
bounds             how far a good computation may be from the truth; `attention_bounds` for attention
verdicts           comparing a result with its bounds
drawing            inputs drawn to be awkward, and fixed random ones
guards             arrays with guards around them, which show reads and writes out of bounds
check              checking a function, anybody's
shrinking          from a failing input to a smaller one
report             what a check found
verify             every kernel in every dtype; `verify_model` for a whole model, layer by layer
"""
