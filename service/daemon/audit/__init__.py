"""The record: what was flagged, what was seen, and what was missed."""
