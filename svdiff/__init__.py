"""SVDiff: Compact Parameter Space for Diffusion Fine-Tuning (Han et al., ICCV 2023)."""
