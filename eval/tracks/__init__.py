"""One module or folder per track: a kind of task with every method that does it."""
