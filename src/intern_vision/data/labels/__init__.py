"""The label system of GV-D: concepts as a graph, dataset vocabularies that are merged into it, and what was unsure."""
