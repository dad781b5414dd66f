"""PIXELS: Progressive Image Xemplar-based Editing with Latent Surgery (Das Biswas et al., AAAI 2025)."""
