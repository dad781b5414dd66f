"""Settings found on the validation split, one module per track."""
