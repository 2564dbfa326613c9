# SPDX-License-Identifier: BSD-3-Clause
"""The report: complete, on its own, and true to the figures."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
for library in ("sklearn", "safetensors"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'pyparareal[train]'")

from pyparareal.nn.training_job import job, report  # noqa: E402
from pyparareal.nn.training_job.report import confusion, curves, timeline  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402
from pyparareal.nn.training_job.step_time import StepTimes  # noqa: E402

VOID = {"meta", "br", "link"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    settings = Settings(model="resnet8", width=2, parts=3, epochs=2)
    return out, job.run_job(settings, out)


@pytest.fixture
def result(finished):
    return json.loads((finished[0] / "report.json").read_text())


class Outline(HTMLParser):
    """Tags that are opened are closed, in order; what would be fetched is noted."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_report_is_complete_and_fetches_nothing(finished):
    out, result = finished
    page = (out / "report.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.fetched == []
    assert not re.search(r"http|url\(|@import|<script|<link|<img", page)
    for words in ("Result", "Curves", "Confusion", "Partition", "One training step", "Settings"):
        assert f"<h2>{words}</h2>" in page
    for words in ("When it will not help", "weight_decay", "MFLOP per image", "predicted, 3 devices", "viewport"):
        assert words in page
    assert "prefers-color-scheme: dark" in page
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(result))
    assert not (out / "curves.png").exists()


def test_pictures_are_well_formed_and_in_the_colours_of_the_page(finished):
    page = (finished[0] / "report.html").read_text()
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 3 + 1 + 2  # curves, partition, timeline for wide and for narrow screens
    style = page[page.index("<style>") : page.index("</style>")]
    for picture in pictures:
        root = ET.fromstring(picture)
        width, height = float(root.get("width")), float(root.get("height"))
        for element in root.iter():
            assert element.get("style") is element.get("fill") is element.get("stroke") is None
            for name in (element.get("class") or "").split():
                assert f".{name}" in style, f"no colour for {name}"
            if element.tag == "text":
                assert 0 <= float(element.get("x")) <= width
                assert 0 < float(element.get("y")) <= height
            if element.tag == "rect":
                assert float(element.get("x")) + float(element.get("width")) <= width + 0.1


def test_text_tables_have_a_row_for_everything(result):
    lines = report.text_table(result).splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["serial", "parareal", "serial"]
    body = report.body_tables(result).splitlines()
    assert [line.split()[0] for line in body if line.lstrip()[:1].isdigit()] == ["1", "2", "3"]
    assert [line.split()[0] for line in body if line[:1] in "CF" and "^" in line] == [
        *("C^1", "C^2", "C^3", "F^1", "F^2")
    ]
    assert "the serial coarse chain costs" in body[-1]


@pytest.mark.parametrize(("seconds", "words"), [(1.0, "Predicted on 2 devices: 2.00 times"), (3.0, "Nor is it")])
def test_honest_words_follow_the_figures(result, seconds, words):
    serial, parareal = result["networks"].values()
    serial |= {"seconds_per_step": 2.0, "predicted_seconds_per_step": {"1": 2.0, "2": 2.0}}
    parareal |= {"seconds_per_step": 5.0, "predicted_seconds_per_step": {"1": 5.0, "2": seconds}}
    said = report.when_it_will_not_help(result)
    assert words in said
    assert "takes 2.50 times a serial step (measured)" in said
    del result["networks"]["serial"]
    assert "--compare-serial" in report.when_it_will_not_help(result)
    assert "serial" not in report.text_table(result)
    assert "<h2>Confusion</h2>" in report.page(result)


# What the job found out about the network


def test_flops_are_those_of_the_modules(result):
    from torch.utils.flop_counter import FlopCounterMode

    from pyparareal.nn import models

    serial = models.build("resnet8", channels=1, classes=10, width=2)
    nets = {"serial": serial, "parareal": models.build_parareal(serial, (1, 8, 8), 3)}
    for name, net in nets.items():
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            net.eval()(torch.zeros(1, 1, 8, 8))
        assert result["body"]["flops"][name] == counter.get_total_flops()
    mean = sum(part["flops"] for part in result["body"]["parts"]) / 3
    for cost in result["body"]["maps"]:
        assert cost["flops"] == pytest.approx(cost["relative"] * mean, abs=1)
    assert sum(part["parameters"] for part in result["body"]["parts"]) + 2 * 9 + 4 + 8 * 10 + 10 == sum(
        p.numel() for p in serial.parameters()
    )


def test_confusion_counts_every_test_image_once(result):
    for row in result["networks"].values():
        counts = row["confusion"]
        assert sum(map(sum, counts)) == result["images"]["test"] == 355
        right = sum(counts[i][i] for i in range(10))
        assert right / 355 == row["test_accuracy"]
    labels, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    found = job.confusion(labels, predicted, 3)
    assert found == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert confusion.recalls([*found[:2], [0, 0, 0]]) == [0.5, 1.0, None]


def many_classes(result, classes):
    counts = [[0] * classes for _ in range(classes)]
    for i in range(classes):
        counts[i][i] = 9
    counts[1][2], counts[3][0] = 5, 7
    result["networks"] = {"parareal": {"confusion": counts}}
    result["class_names"] = ["<a & b>", *(f"class {i}" for i in range(1, classes))]
    return confusion.confusion_tables(result)


def test_a_few_classes_are_a_table_and_many_are_lists(result):
    table = many_classes(result, 20)
    assert table.count("<tr>") == 21
    assert "&lt;a &amp; b&gt;" in table
    assert "<a &" not in table
    lists = many_classes(result, 21)
    rows = re.findall(r"<tr><td>(.*?)</td></tr>", lists)
    assert [row.split("</td><td>") for row in rows[:2]] == [
        ["class 3", "&lt;a &amp; b&gt;", "7"],
        ["class 1", "class 2", "5"],
    ]
    assert rows[2] == "class 3</td><td>56.2 %"  # 9 of 16, the lowest recall


# Pictures


def bars(picture, css):
    root = ET.fromstring(picture)
    return [r for r in root.iter("rect") if css in r.get("class").split()]


def test_the_timeline_shows_each_piece_in_proportion(result):
    times = StepTimes(**result["networks"]["parareal"]["pieces"])
    factor = timeline.predicted_factor(times)
    picture = re.findall(r"<svg.*?</svg>", timeline.timeline(result), flags=re.DOTALL)[0]
    fine = bars(picture, "fine")
    assert len(fine) == 2 + 2 * 3 + 2 * 3  # serial network, measured parareal network, predicted
    measured, predicted = (float(fine[k].get("width")) for k in (2, 8))
    # Widths are rounded to a tenth of a pixel.
    assert predicted / measured == pytest.approx(factor, abs=0.2 / measured * (1 + factor))
    assert {bar.get("class").split()[1] for bar in bars(picture, "critical")} == {
        *("preprocess", "fine", "coarse", "head", "update")
    }


@pytest.mark.parametrize("correction", ["residual", "difference"])
def test_the_partition_picture_has_every_piece(result, correction):
    result["settings"]["correction"] = correction
    page = report.page(result)
    picture = next(p for p in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL) if "cut into parts" in p)
    assert [len(bars(picture, css)) for css in ("preprocess", "coarse", "head")] == [3, 2, 1]
    assert len(bars(picture, "piece")) == 3 + 3 + 2 + 1
    signs = [t.text for t in ET.fromstring(picture).iter("text") if t.text in ("+", "\N{MINUS SIGN}")]
    assert sorted(signs) == ["+"] * 2 + ["\N{MINUS SIGN}"] * (2 if correction == "residual" else 0)


def test_ticks_are_round_and_cover_the_values():
    assert curves.ticks(0, 23.7, 5) == [0, 5, 10, 15, 20, 25]
    assert curves.ticks(1, 30, 6) == [0, 5, 10, 15, 20, 25, 30]
    assert curves.ticks(0, 0.03, 5) == [0, 0.01, 0.02, 0.03]
    assert curves.ticks(1, 1, 6) == [1]
    assert curves.decades(0.03, 2.4) == [0.01, 0.1, 1, 10]
    assert curves.decades(0.3, 0.9) == pytest.approx([0.2, 0.5, 1])
    assert curves.decades(1.0, 1.0)[0] <= 1.0 < curves.decades(1.0, 1.0)[-1]


def test_a_run_of_one_epoch_and_one_part_is_drawn(result):
    for row in result["networks"].values():
        row["history"] = row["history"][:1]
        row["history"][0]["train_loss"] = 0.0  # has no logarithm
        row["predicted_seconds_per_step"] = {"1": row["seconds_per_step"]}
    for picture in re.findall(r"<svg.*?</svg>", curves.charts(result), flags=re.DOTALL):
        assert "nan" not in picture
        ET.fromstring(picture)
