"""What all kernels build on: Triton or plain torch, argument checks, configurations, and an exact interpreter.

optional_triton   Triton, or stand-ins if it is not installed
dispatch          which implementation an operation uses
arguments         checks of types, shapes, devices and ranges
dtypes            the dtypes that kernels support, and the wider ones they compute in
variants          how kernels are launched on each GPU target
launch            launching them: on the tensors' device, within the limits of a grid
derivative        elementwise functions with a derivative of their own
modules           whether the weights of a module may be used without calling it
foreign           arguments of transformers: translated, or refused with advice
loading           functions and kernels from a user's Python file
interpreter       Triton's interpreter, made exact in bfloat16 and strict about masked loads
self_test         comparing that interpreter with torch
shuffled_grid     that interpreter, with the programs of a launch in a random order
moved             where modules of earlier versions are now
"""
