"""Pictures of one's own: a list of them, an editor per kind of method, and their track."""
