"""What measures the method: the tables of the paper, its claims and experiments, and what it is compared with."""
