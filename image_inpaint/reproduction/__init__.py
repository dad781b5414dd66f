"""What measures image-guided inpainting: methods compared, scores, tables, beside the published numbers."""
