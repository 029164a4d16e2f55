"""What all kernels run on: Triton or plain torch, argument checks, configurations, and an exact interpreter.

optional_triton   Triton, or stand-ins where it is not installed
dispatch          which way an operation computes
arguments         checks of types, shapes, devices and ranges
dtypes            the dtypes of kernels, and the wider ones that they compute in
variants          how kernels are launched on each GPU target
interpreter       exact bfloat16 in Triton's interpreter
moved             where modules of earlier versions are now
"""
