"""Plots for pages: static, in the page's colours, whatever their labels say."""

import re

from workbench.core.plots import (
    DARK,
    LIGHT,
    as_svg,
    legend_below,
    legend_label,
    new_figure,
    plain_log_ticks,
    series_colour,
    series_marker,
)


def drawn(label="a", **how):
    with new_figure(**how) as (figure, (axes, *_)):
        axes.plot([50, 900], [1, 2], color=series_colour(0), label=label)
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis, [50, 900])
        legend_below(figure, axes, 1)
    return figure


def test_a_plot_is_an_element_without_scripts_addresses_or_fixed_colours():
    svg = as_svg(drawn(), 'a "plot" <of>')
    assert svg.startswith("<svg viewBox=")
    assert 'aria-label="a &quot;plot&quot; &lt;of&gt;"' in svg
    assert not re.search(r"https?:|<script|<metadata|<!DOCTYPE", svg)
    assert set(re.findall("#[0-9a-f]{6}", svg)) == set()
    assert "var(--series-0)" in svg
    assert "font-family" not in svg
    assert svg == as_svg(drawn(), 'a "plot" <of>')  # the same every time


def test_labels_are_text_whatever_signs_are_in_them():
    svg = as_svg(drawn("$\\frac{</text><script>alert(1)</script>今"), "x")
    assert "<script" not in svg
    assert "$\\frac{&lt;/text&gt;&lt;script&gt;" in svg


def test_a_name_that_begins_with_an_underscore_stands_in_the_legend():
    assert "_mine</text>" in as_svg(drawn(legend_label("_mine")), "x")
    assert legend_label("mine_") == "mine_"


def test_no_two_of_many_series_look_alike_and_none_is_the_star():
    looks = [(series_colour(i), series_marker(i)) for i in range(56)]
    assert len(set(looks)) == 56
    assert "*" not in {marker for _, marker in looks}


def test_logarithmic_ticks_are_plain_numbers():
    svg = as_svg(drawn(), "x")
    ticks = [
        found
        for found in re.findall(r">([0-9,.]+)</text>", svg)
        if found in ("50", "100", "200", "300", "500", "1,000")
    ]
    assert ticks == ["50", "100", "200", "300", "500"]


def test_light_and_dark_have_the_same_names_and_colours_are_told_apart():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)
