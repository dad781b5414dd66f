"""Preserve and Personalize: Personalized T2I Diffusion Models without Distributional Drift (Kim et al., 2025)."""
