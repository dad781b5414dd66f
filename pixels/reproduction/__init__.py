"""What measures PIXELS: its controls, scores, tables, figures and lemma, beside the published numbers."""
