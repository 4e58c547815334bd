"""Indexes that only the audit page needs."""

PAGE_INDEXES = """
CREATE INDEX IF NOT EXISTS flags_by_score ON flags (detector, score);
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (finished_at, flagged_by);
"""
"""Made when the record is opened for writing; nothing but speed depends on them."""
