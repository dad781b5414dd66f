"""What at least three of the paper folders need: pipelines, DDIM, metrics, data, images, runs."""
