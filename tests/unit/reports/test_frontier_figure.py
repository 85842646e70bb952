"""Where the labels of a frontier's points stand."""

import itertools

import pytest

from etw_lightning.reports.frontier_figure import label_places

WIDTH, HEIGHT = 170, 130


def box(place, label):
    x, y = place
    return x - 3 * len(label), y - 5, x + 3 * len(label), y + 5


def meet(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([(150, 40), (152, 44), (153, 44)], ["8", "2", "0.5"]),
        ([(139, 26), (150, 18), (156, 28), (164, 27)], ["3.2", "1.6", "0.8", "0.4"]),
        ([(0, 7)], ["0.03"]),
        ([(0, 0), (170, 0), (0, 130), (170, 130)], ["0.001", "0.1", "1", "100"]),
        ([(85, 65)] * 4, ["1", "2", "3", "4"]),
    ],
    ids=["three that nearly coincide", "a crowd", "at the edge", "in the corners", "one place"],
)
def test_labels_cover_neither_each_other_nor_points_and_stay_in_the_panel(points, labels):
    places = label_places(points, labels, WIDTH, HEIGHT)
    boxes = [box(place, label) for place, label in zip(places, labels, strict=True)]
    assert not any(meet(one, other) for one, other in itertools.combinations(boxes, 2))
    dots = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    assert not any(meet(one, dot) for one in boxes for dot in dots)
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= WIDTH and b[3] <= HEIGHT for b in boxes)
    # Each stands nearer to a point of its own place than three lines of text.
    assert all(
        abs(x - u) < 40 and abs(y - v) < 40 for (x, y), (u, v) in zip(places, points, strict=True)
    )


def test_a_point_that_stands_alone_has_its_label_above():
    assert label_places([(85.0, 65.0)], ["0.25"], WIDTH, HEIGHT) == [(85.0, 54.0)]
