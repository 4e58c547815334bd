"""A ring of records in memory that two processes share: one writes, one reads."""
