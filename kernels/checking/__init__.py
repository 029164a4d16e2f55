"""Is a kernel right? Its result is compared with the exact one from NumPy, within bounds that are derived, not picked.

operation          what is known about an operation: how it is called, its exact result, a bound, its inputs
operations         the registry of the model's operations; `examples` has four others, as models for your own
letters            inputs declared by the letters of their shapes
formats            floating-point formats as numbers
bounds             how far a good computation may be from the exact result; `attention_bounds` for attention
default_bounds     bounds taken from a definition in NumPy, by arithmetic with `intervals` around its numbers
verdicts           compares a result with its bounds
drawing            draws awkward inputs, and fixed random ones
coverage           the fixed cases of every check: large sizes, layouts, launches; made by `families`, with `virtual`
                   arrays for huge ones; `special` values; the `tails` of gelu
guards             arrays surrounded by guards, which expose reads and writes out of bounds
watching           every address and every launch of a kernel in the interpreter
check              checks any function: `runner` calls it and judges its results, `searching` draws inputs
shrinking          reduces a failing input to a smaller one
diagnosis          names the mistake behind a failure: it runs the function on `telling` inputs, and compares it with
                   wrong implementations, `mistakes`, `norm_mistakes`, `attention_mistakes` and `group_mistakes`
report             what a check found
verify             checks every kernel in every dtype; `verify_model` checks a whole model, layer by layer
"""
