"""One script a figure: ``python -m benchmarks.d1_trainer_step`` runs one, ``python -m benchmarks`` all."""
