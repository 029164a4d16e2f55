"""What all kernels build on: Triton or plain torch, argument checks, configurations, and an exact interpreter.

optional_triton   Triton, or stand-ins if it is not installed
dispatch          which implementation an operation uses
arguments         checks of types, shapes, devices and ranges
dtypes            the dtypes that kernels support, and the wider ones they compute in
variants          how kernels are launched on each GPU target
launch            launching them: on the tensors' device, within the limits of a grid
derivative        elementwise functions with a derivative of their own
interpreter       Triton's interpreter, made exact in bfloat16 and strict about masked loads
self_test         comparing that interpreter with torch
moved             where modules of earlier versions are now
"""
