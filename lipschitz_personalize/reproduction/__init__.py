"""What measures the method: the paper's tables, figures and claims, the toy, drift, and what the penalty costs."""
