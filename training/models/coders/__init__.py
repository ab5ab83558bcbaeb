"""Box coders: predicted numbers to boxes and back."""
