"""Operators that inference engines disagree about, as PyTorch custom ops."""
