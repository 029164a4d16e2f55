"""Judges the judges: which planted faults do `check` and the tests of well-known libraries see?

faults             the catalogue: wrong functions for every operation and every shipped example
wrappers           makes a right function wrong at large sizes, at special values or from one call to the next
launches           a Triton kernel with faults in its launch and its addresses
example_functions  functions for the shipped examples, with faults
right              right functions, which no test may refuse
field              the tests of well-known libraries: their inputs and their tolerances
judge              what each of them says of one function
table              runs all of it, keeps finished rows, and writes the table into kernels/checking/README.md
"""
