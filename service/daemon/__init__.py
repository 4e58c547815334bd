"""The sidecar: one process that scores, records and answers."""
