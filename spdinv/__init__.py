"""Source Prompt Disentangled Inversion for Boosting Image Editability with Diffusion Models (ECCV 2024)."""
