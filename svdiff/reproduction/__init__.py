"""What measures the method: the paper's tables, figures and claims, and what a training step costs."""
