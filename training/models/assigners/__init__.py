"""Label assigners: which predictions are responsible for which objects."""
