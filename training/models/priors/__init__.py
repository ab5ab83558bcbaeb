"""Prior generators: the points or boxes that predictions are relative to."""
