"""The page: what tracks found, as one HTML file."""
