"""How fast the kernels and models are, on a GPU and on a CPU, next to the alternatives.

work        sizes, batches, and the minimum work of each step
measured    what a workload consists of: calls on rotating inputs, and the floor of their time
workloads   the competitors for each single operation
yours       the competitors for a user's function, where this package has no kernel
encoders    the competitors for the whole encoder; `baselines` has the other implementations
timing      fair timing: competitors take turns, inputs are not in the cache
runner      runs one case after another and saves after each
repeats     whether results have the same bits each time
sweep       whether other configurations of the kernels are faster
report      rows and tables; `figures` draws them
cpu         the same for models on a CPU: each competitor in a process of its own (`cpu_child`); `cpu_models` has them
"""
