"""Published models of the zoo, ready to predict."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from deploykit.training.checkpoint import read_checkpoint
from deploykit.training.model_spec import LoadedModel, load_model
from deploykit.zoo import ZooEntry, download


def load_zoo_model(entry: ZooEntry) -> LoadedModel:
    """Build a published model with its weights, which are downloaded unless they are here.

    Its config is the one in the file if MMDetection 3.x wrote that, else the one of the same name
    in an installed MMDetection or among the shipped recipes, else what 2.x left in the file.

    Args:
        entry: The model.

    Raises:
        DownloadError: The weights cannot be fetched.
        CheckpointError: They cannot be read, or do not fit.
        ConfigError: There is no config, or the model cannot be built.
    """
    file = download(entry)
    return load_model(file, zoo_config(entry, file))


def zoo_config(entry: ZooEntry, file: Path) -> Path | None:
    """Return the config file of a published model, or ``None`` for the one in its checkpoint."""
    from deploykit.training.recipes import recipe_paths

    meta = read_checkpoint(file).get("meta")
    if isinstance(meta, dict) and isinstance(meta.get("cfg"), str):
        return None  # written by MMDetection 3.x
    package = find_spec("mmdet")  # its files alone; it is not imported
    for location in (package.submodule_search_locations or ()) if package else ():
        config = Path(location) / ".mim" / "configs" / entry.config
        if config.is_file():
            return config
    return recipe_paths().get(PurePosixPath(entry.config).stem)
