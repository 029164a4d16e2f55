"""How fast the kernels and models are on a GPU, beside the alternatives.

work        sizes, batches, and the least work that each step takes
workloads   the competitors for one operation at a time
encoders    the competitors for a whole encoder; `baselines` has the models of others
timing      fair timing: in turns, out of cache
runner      one case after the other, saved after each
report      rows and tables; `figures` draws them
"""
