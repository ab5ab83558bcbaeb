from __future__ import annotations

import pytest

from deploykit.errors import ConfigError
from deploykit.training.registry import Registry


@pytest.fixture
def registry() -> Registry:
    registry = Registry("shape")

    @registry.register()
    class Square:
        def __init__(self, side: int, colour: str = "red") -> None:
            self.side, self.colour = side, colour

    return registry


def test_build_passes_the_keys_as_arguments_and_leaves_the_config_alone(registry):
    config = {"type": "Square", "side": 3}
    square = registry.build(config, colour="blue")
    assert (square.side, square.colour) == (3, "blue")
    assert config == {"type": "Square", "side": 3}


def test_the_config_wins_over_defaults(registry):
    square = registry.build({"type": "Square", "side": 1, "colour": "green"}, colour="blue")
    assert square.colour == "green"


def test_a_scope_prefix_is_dropped(registry):
    assert registry.build({"type": "mmdet.Square", "side": 2}).side == 2
    assert "mmdet.Square" in registry


def test_an_unknown_type_lists_close_names(registry):
    with pytest.raises(ConfigError, match="unknown shape type 'Sqare'. Did you mean Square"):
        registry.build({"type": "Sqare"})


@pytest.mark.parametrize("config", [{}, {"side": 1}, None, [], "Square"])
def test_a_config_without_type_is_refused(registry, config):
    with pytest.raises(ConfigError, match="must be a dict with a 'type' key"):
        registry.build(config)


@pytest.mark.parametrize("arguments", [{}, {"side": 1, "depth": 2}])
def test_arguments_that_do_not_fit_name_the_type(registry, arguments):
    with pytest.raises(ConfigError, match="shape 'Square'"):
        registry.build({"type": "Square", **arguments})


def test_a_misspelt_argument_names_the_right_one(registry):
    with pytest.raises(ConfigError, match="'color'. Did you mean colour"):
        registry.build({"type": "Square", "side": 1, "color": "red"})


def test_a_value_of_the_wrong_kind_names_the_argument(registry):
    with pytest.raises(ConfigError, match="shape 'Square': side must be a number, got 'wide'"):
        registry.build({"type": "Square", "side": "wide"})


def test_an_error_inside_the_constructor_is_not_disguised():
    registry = Registry("shape")

    @registry.register("Broken")
    def build() -> None:
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        registry.build({"type": "Broken"})


def test_a_name_can_be_taken_once(registry):
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("Square")(dict)
