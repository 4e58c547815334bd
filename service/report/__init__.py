"""The page of `innerwatch evaluate`: pictures and text in one file."""
