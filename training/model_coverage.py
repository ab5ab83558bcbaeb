"""Which configs of a folder can be used: read, built, and with which layout of the weights."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from deploykit.errors import ConfigError, DeploykitError
from deploykit.training.config import Config, load_config

_REASON_LENGTH = 160
# Folders and files of a package of configs that are no configs of models.
_NO_CONFIGS = ("_base_",)


@dataclass(frozen=True)
class Coverage:
    """How far one config gets.

    Args:
        resolved: Whether it could be read.
        detector: The type of its model.
        built: Whether the model could be built.
        reason: Why it could not be read or built.
        keys: Entries of the model's state dict.
        parameters: Trainable numbers of the model.
        layout: ``layout_digest`` of the model.
        expected: The digest of MMDetection's model, if it is known.
        model: Hash of what the results depend on: the model and how its input is prepared.
        exported: From the lowerings that were tried to ``"ok"`` or why there is no file.
        parity: From the same to the parity in words.
    """

    resolved: bool
    detector: str = ""
    built: bool = False
    reason: str = ""
    keys: int = 0
    parameters: int = 0
    layout: str = ""
    expected: str = ""
    model: str = ""
    exported: dict[str, str] = field(default_factory=dict)
    parity: dict[str, str] = field(default_factory=dict)

    @property
    def layout_verdict(self) -> str:
        """``"equal"`` or ``"differs"``; empty where there is nothing to compare."""
        if not (self.layout and self.expected):
            return ""
        return "equal" if self.layout == self.expected else "differs"


def layout_digest(model: torch.nn.Module) -> str:
    """Return the first 16 hex digits of the SHA-256 of the lines ``name shape``, sorted by name."""
    state = model.state_dict()
    lines = [f"{name} {tuple(state[name].shape)}" for name in sorted(state)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def config_files(folder: Path) -> dict[str, Path]:
    """Return the configs under a folder by their relative paths, without bases.

    Raises:
        ConfigError: There are none.
    """
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*.py"))
        if not any(part in _NO_CONFIGS for part in path.relative_to(folder).parts)
        and path.name != "__init__.py"
    }
    if not files:
        raise ConfigError(f"there are no configs (*.py) in {folder}")
    return files


class CoverageSweep:
    """Tries the configs of a folder, building each distinct model once.

    Args:
        folder: Where the configs are.
        expected: Digests of layouts by the relative path of the config.
        earlier: Results of an earlier sweep: what was exported is kept while the model is the same.
    """

    def __init__(
        self,
        folder: Path,
        expected: Mapping[str, str] | None = None,
        earlier: Mapping[str, Coverage] | None = None,
    ) -> None:
        self.files = config_files(folder)
        self._expected, self._earlier = expected or {}, earlier or {}
        self._built: dict[str, Coverage] = {}

    def __iter__(self) -> Iterator[tuple[str, Coverage]]:
        for name, path in self.files.items():
            yield name, self._cover(name, path)

    def _cover(self, name: str, path: Path) -> Coverage:
        try:
            config = load_config(path)
        except DeploykitError as error:
            return Coverage(resolved=False, reason=_reason(error, self.files[name].parents))
        if not isinstance(config.get("model"), Mapping):
            return Coverage(resolved=True, reason="the config has no model")
        key = _text(config["model"])
        if key not in self._built:
            self._built[key] = _build(config)
        earlier = self._earlier.get(name)
        model = hashlib.sha256((key + _text(_input(config))).encode()).hexdigest()[:16]
        found = replace(self._built[key], expected=self._expected.get(name, ""), model=model)
        if earlier is not None and earlier.model == model and found.built:
            found = replace(found, exported=earlier.exported, parity=earlier.parity)
        return found


def _build(config: Config) -> Coverage:
    from deploykit.training.models import build_detector

    detector = str(config["model"].get("type", ""))
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build_detector(_without_pretrained(config["model"]))
    except Exception as error:  # one config that breaks must not stop the sweep
        kind = "" if isinstance(error, DeploykitError) else f"{type(error).__name__}: "
        return Coverage(resolved=True, detector=detector, reason=kind + _reason(error, ()))
    return Coverage(
        resolved=True,
        detector=detector,
        built=True,
        keys=len(model.state_dict()),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layout=layout_digest(model),
    )


def _without_pretrained(value: Any) -> Any:
    """Return a model config that loads no files."""
    if isinstance(value, Mapping):
        return {
            key: None if key == "init_cfg" and _is_pretrained(item) else _without_pretrained(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_without_pretrained(item) for item in value)
    return value


def _is_pretrained(init: Any) -> bool:
    return isinstance(init, Mapping) and str(init.get("type", "")).endswith("Pretrained")


def _input(config: Config) -> Any:
    loader = config.get("test_dataloader")
    return loader.get("dataset") if isinstance(loader, Mapping) else None


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def _reason(error: Exception, folders: Any) -> str:
    text = " ".join(str(error).split())
    for folder in list(folders)[:3]:
        text = text.replace(f"{folder}{os.sep}", "")
    # Lists of what there is instead change with every new part.
    text = text.split(" Known: ")[0].split(" Did you mean ")[0]
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 3] + "..."


def sweep(
    folder: Path,
    expected: Mapping[str, str] | None = None,
    earlier: Mapping[str, Coverage] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Coverage]:
    """Try all configs of a folder.

    Args:
        folder: Where the configs are.
        expected: Digests of layouts by the relative path of the config.
        earlier: Results of an earlier sweep, whose exports are kept where the model is the same.
        progress: Called with the number of configs done and of all.

    Returns:
        Results by the relative path of the config.

    Raises:
        ConfigError: There are no configs.
    """
    level, start = logging.root.manager.disable, time.monotonic()
    logging.disable(logging.WARNING)  # of deprecated configs
    try:
        run = CoverageSweep(folder, expected, earlier)
        results = {}
        for done, (name, found) in enumerate(run, 1):
            results[name] = found
            progress(done, len(run.files))
    finally:
        logging.disable(level)
    logging.getLogger(__name__).info("%d configs in %.0f s", len(results), time.monotonic() - start)
    return results


def read_record(file: Path) -> dict[str, Coverage]:
    """Read the results of an earlier sweep; an empty dict if there are none.

    Raises:
        ConfigError: The file is damaged.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: Coverage(**values) for name, values in content["configs"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file} is no record of a sweep ({error}); delete it") from None


def record_text(results: Mapping[str, Coverage]) -> str:
    """Return results as JSON, one config per line, defaults left out."""
    empty = asdict(Coverage(resolved=True))
    lines = []
    for name in sorted(results):
        values = {
            k: v for k, v in asdict(results[name]).items() if k == "resolved" or v != empty[k]
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(values, sort_keys=True)}")
    return '{"configs": {\n' + ",\n".join(lines) + "\n}}\n"


def read_layouts(file: Path) -> dict[str, str]:
    """Read digests of layouts: ``{"config.py": "93d7a1e804511c1b", ...}``.

    Raises:
        ConfigError: The file is missing or of another form.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise ConfigError(f'{file}: expected an object like {{"folder/config.py": "digest"}}')
    return content
