"""What the kernels compile to, for GPUs that need not be present: registers, spills, instructions.

compiler   compiling one kernel for one target
figures    reading figures from the output of compilers and assemblers
listing    reading disassembled machine code
gates      the requirements on the machine code of every kernel variant
report     a table of every kernel for every target
"""
