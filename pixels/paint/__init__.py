"""A brush for edit maps and masks: one page without a server, which shows when each grey is let go."""
