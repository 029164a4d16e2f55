"""An experiment: what the paper's objectives add, in a small model of three languages. `make experiment` runs it.

design     the arms, and what each of them learns from
runs       training, for several seeds
figures    retrieval and classification on the test split, and differences with intervals
page       README.md and results.png from results.json

recipe.json says how large everything is; README.md, what was expected and what came out.
"""
