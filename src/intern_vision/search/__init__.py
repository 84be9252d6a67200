"""GV-A: the search space, the controllers that propose genotypes, and the evaluators that score them."""
