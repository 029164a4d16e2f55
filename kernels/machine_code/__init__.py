"""What the compiler makes of the kernels, for GPUs that need not be there: registers, spills, instructions.

compiler   one kernel compiled for one target
figures    reading the figures out of what compilers and assemblers print
listing    reading disassembled machine code
gates      what the machine code of shipped kernels has to satisfy
report     every kernel for every target, as a table
"""
