"""Scales: monotonic lightness, a neutral centre, pixels that mean what the colour bar says."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from sparselens.dashboards.colour import LEVELS, contrast, ink, level, palette
from sparselens.dashboards.picture import NOTHING, Scale, png


def lightness(colours: np.ndarray) -> np.ndarray:
    linear = (colours / 255) ** 2.2
    return np.asarray(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_sequential_scale_is_monotonic_in_lightness(theme: str) -> None:
    steps = np.diff(lightness(palette("seq", theme, LEVELS + 1).astype(float)))
    assert (steps < 0).all() if theme == "light" else (steps > 0).all()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_diverging_scale_leaves_its_centre_on_both_sides_alike(theme: str) -> None:
    light = lightness(palette("div", theme, 65).astype(float))
    away = np.abs(light - light[32])
    assert (np.diff(away[32:]) > 0).all()
    assert (np.diff(away[:33]) < 0).all()


def test_an_unknown_scale_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="seq, div"):
        palette("rainbow", "light")
    with pytest.raises(ValueError, match="linear, sqrt, log"):
        Scale("cubic", 1.0).place(np.ones((1, 1)))


@pytest.mark.parametrize("kind", ["linear", "sqrt", "log"])
@pytest.mark.parametrize("diverging", [False, True])
def test_the_colour_bar_reads_back_the_value_that_was_drawn(kind: str, diverging: bool) -> None:
    scale = Scale(kind, 0.7, diverging)
    values = np.array([[0.0001, 0.01, 0.2, 0.7]]) * (-1 if diverging else 1)
    back = [scale.value(float(place)) for place in scale.place(values)[0]]
    np.testing.assert_allclose(back, values[0], rtol=1e-6)


def test_pixels_are_the_palette_at_the_cells_place_and_nan_is_transparent() -> None:
    cells = np.array([[0.0, 0.25], [1.0, np.nan]])
    opened = Image.open(BytesIO(png(cells, Scale("sqrt", 1.0), "light")))
    assert opened.mode == "P"  # a byte a pixel
    image = np.asarray(opened.convert("RGBA"))
    colours = palette("seq", "light", NOTHING)
    np.testing.assert_array_equal(image[0, 0, :3], colours[0])
    np.testing.assert_array_equal(image[0, 1, :3], colours[127])
    np.testing.assert_array_equal(image[1, 0, :3], colours[254])
    assert image[1, 1, 3] == 0


def test_levels_are_clipped_and_missing_values_have_none() -> None:
    assert [level(value, 0, 1) for value in (-1, 0, 0.5, 2, None, float("nan"))] == [0, 0, 16, 32, None, None]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["seq", "div"])
def test_text_on_any_step_of_a_scale_is_read(kind: str, theme: str) -> None:
    colours = {"#000": (0, 0, 0), "#fff": (255, 255, 255)}
    for red, green, blue in palette(kind, theme, LEVELS + 1).tolist():
        paper = (red, green, blue)
        assert contrast(paper, colours[ink(paper)]) >= 4.5
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
