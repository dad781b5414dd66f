"""The embedded world: a drawn picture book, its benchmarks, and the small diffusion model trained on it."""
