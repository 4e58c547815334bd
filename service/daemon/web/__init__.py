"""The audit page: what an operator and a reviewer see in a browser."""
