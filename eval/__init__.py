"""All methods on the same pictures: the report, claims, speed and memory."""
