"""What the kernels compile to, for GPUs that need not be present: registers, spills, instructions.

compiler   compiling one kernel for one target
figures    reading figures from the output of compilers and assemblers
listing    reading disassembled machine code
gates      the requirements on the machine code of every kernel variant
report     a table of every kernel for every target
launches   kernels of your own: recorded from a call, or described by a signature
children   recording and compiling them, each in a process that can
advice     what is bad about a kernel's machine code, in words
"""

from .advice import advice
from .children import rows_of
from .launches import Launch, record
from .report import table

__all__ = ["Launch", "advice", "record", "rows_of", "table"]
