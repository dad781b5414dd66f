"""Methods that the papers compare with and that no folder owns, one short file each."""
