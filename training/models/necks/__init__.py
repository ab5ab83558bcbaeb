"""Necks: features of the backbone to features for the head."""
