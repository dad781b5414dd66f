"""Image Guided Inpainting with Parameter Efficient Learning (Lim and Kim, 2023)."""
