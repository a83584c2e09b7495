"""What a run survives: processes that are killed at random moments, and faults that are put in on purpose."""
