"""Speed and memory against what a user would run instead."""
