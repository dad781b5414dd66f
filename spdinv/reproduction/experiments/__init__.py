"""What the paper argues beside its tables, measured on pictures of which the true noise is known.

Each: run(args, methods, pipe, resolution, items, encoders, output) for spdinv.eval; it skips what is done.
"""

# name -> module; imported when it is run
EXPERIMENTS = {
    "noise_gap": "spdinv.reproduction.experiments.noise_gap",
    "premise": "spdinv.reproduction.experiments.premise",
    "convergence": "spdinv.reproduction.experiments.convergence",
}
