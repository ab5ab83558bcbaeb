"""Published MMDetection models by name: where their weights are, and how well they do."""

from deploykit.zoo.download import download, zoo_file
from deploykit.zoo.index import ZooEntry, find_entry, has_entry, zoo_entries

__all__ = ["ZooEntry", "download", "find_entry", "has_entry", "zoo_entries", "zoo_file"]
