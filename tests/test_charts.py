import re

import pytest

from ibtrain.charts import Chart, Line, Mark, Point, drawn, legend, number
from tests.html_page import Page

HOSTILE = '"><script>alert(1)</script>'


def line(*values: float, colour: int = 0, name: str = "a") -> Line:
    return Line(name, colour, [Point(10 * at, v, v, v) for at, v in enumerate(values)])


def polyline(text: str, at: int = 0) -> list[tuple[float, float]]:
    found = re.findall(r'<polyline class="line c\d" points="([^"]*)"', text)[at]
    return [tuple(map(float, pair.split(","))) for pair in found.split()]  # type: ignore[misc]


def ticks(text: str) -> list[str]:
    return re.findall(r'<span style="bottom:[\d.]+%">([^<]*)</span>', text)


def test_points_stand_where_their_values_say():
    text = drawn(Chart("loss", [line(0, 5, 10)], from_zero=True))
    assert polyline(text) == [(0, 300), (500, 150), (1000, 0)]
    assert ticks(text) == ["0", "2.5", "5", "7.5", "10"]


def test_a_logarithmic_axis_has_powers_of_ten():
    text = drawn(Chart("norm", [line(0.1, 1, 10)], scale="log"))
    assert polyline(text) == [(0, 300), (500, 150), (1000, 0)]
    assert ticks(text) == ["0.1", "1", "10"]
    # Values that a logarithm cannot take are shown on a straight axis.
    assert ticks(drawn(Chart("norm", [line(0, 4)], scale="log")))[0] == "0"


def test_the_lowest_and_the_highest_are_a_band_within_the_box():
    points = [Point(0, 1, 0, 100), Point(10, 3, 2, 4)]
    text = drawn(Chart("loss", [Line("a", 2, points)], from_zero=True))
    [band] = re.findall(r'<polygon class="band c2" points="([^"]*)"', text)
    heights = [float(pair.split(",")[1]) for pair in band.split()]
    assert heights == [0.0, 0.0, 100.0, 300.0] and ticks(text)[-1] == "3"
    assert "polygon" not in drawn(Chart("loss", [line(1, 2)]))


def test_lines_share_the_axes_and_keep_their_colours():
    short, long = line(1, 2, name="a"), line(4, 4, 4, colour=1, name="b")
    text = drawn(Chart("loss", [short, long], from_zero=True))
    assert polyline(text)[1] == (500, 150) and polyline(text, 1)[2] == (1000, 0)
    assert 'class="line c0"' in text and 'class="line c1"' in text
    assert "a: from 1 at step 0 to 2 at step 10; b: from 4 at step 0 to 4 at step 20." in text
    assert polyline(drawn(Chart("l", [short], span=(0, 20))))[1][0] == 500
    assert legend(["a", "b"]).count("<li>") == 2


def test_what_stands_below_the_pointer_and_in_the_table():
    text = drawn(Chart("loss", [line(1, 2, 3)], marks=[Mark(10, 0, "went on")]))
    titles = re.findall(r"<title>([^<]*)</title>", text)
    assert titles == ["step 3.333\n1", "step 10\n2\nwent on", "step 16.67\n3"]
    rows = re.findall(r"<tr><th scope=row>([^<]*)</th><td>([^<]*)</td></tr>", text)
    assert rows == [("0", "1"), ("10", "2"), ("20", "3")]
    assert 'd="M500.0 0V300"' in text


@pytest.mark.parametrize("values", [(), (2,), (2, 2), (0, 0), (-1, -1), (1e300, 1e300), (1e-9, 0)])
def test_few_values_or_equal_ones_are_a_chart_too(values: tuple[float, ...]):
    text = drawn(Chart("t", [line(*values)]))
    assert "nan" not in text and "inf" not in text.replace("info", "")
    assert ("no values" in text) == (not values)


def test_hostile_names_stay_names():
    chart = Chart(HOSTILE, [line(1, 2, name=HOSTILE)], [Mark(1, 0, HOSTILE)], HOSTILE, note=HOSTILE)
    shown = Page(drawn(chart) + legend([HOSTILE]))
    assert not {tag for tag, _ in shown.tags} & {"script"}
    assert shown.words.count(HOSTILE) >= 4


def test_numbers_have_the_digits_that_count():
    wanted = {0: "0", 2.34567: "2.346", 142.04: "142", 12345.6: "12,346", 3e-5: "3e-05"}
    wanted |= {-0.5: "-0.5", 1e20: "1e+20", 30: "30", 0.00025: "0.00025"}
    assert {value: number(value) for value in wanted} == wanted
