"""The benchmark's report, from outcomes that are made up."""

import json
import re

import pytest
import report
from transfers import Outcome


def outcome(program, rate, *, receivers=2, loss=0.0, run=1, cpu=1.0, **changes):
    fields = {
        "whole": receivers,
        "transfer_seconds": 1e9 / rate,
        "whole_seconds": 1e9 / rate + 1,
        "bytes_each": 1e9,
        "cpu_seconds": cpu,
        "cpu_sender": cpu / 2,
        "machine_seconds": cpu,
        "peak_sender": 50 << 20,
        "peak_receiver": 70 << 20,
    }
    return Outcome(program, receivers, loss, run, **{**fields, **changes})


def row(text, *starts):
    pattern = r"\| " + r" \| ".join(map(re.escape, starts)) + r" \|.*"
    found = re.search(pattern, text)
    assert found is not None, text
    return [column.strip() for column in found[0].strip("|").split("|")]


def markdown(outcomes):
    return report.markdown(outcomes, size=10**9, conditions=["a machine"], plot_name="x.png")


def test_an_outcome_kept_in_a_file_is_read_back_as_it_was():
    kept = outcome("uftp", 100e6, run=3, problem="1 of 2 copies broken", details={"arrived": [0.5, 1.0]})
    assert type(kept).from_record(json.loads(json.dumps(kept.record()))) == kept


def test_median_leaves_out_runs_with_broken_copies():
    (cell,) = report.cells(
        [
            outcome("uftp", 100e6, run=1),
            outcome("uftp", 900e6, run=2, whole=1, problem="1 of 2 copies broken"),
            outcome("uftp", 200e6, run=3),
        ]
    )
    assert cell.median("uftp", lambda one: one.rate) == pytest.approx(150e6)


def test_median_of_nothing_good_is_none():
    (cell,) = report.cells([outcome("uftp", 100e6, whole=0)])
    assert cell.median("uftp", lambda one: one.rate) is None


def test_ratio_compares_within_a_run_with_the_best_of_the_others():
    (cell,) = report.cells(
        [
            outcome("deploy-image", 200e6, run=1),
            outcome("udpcast", 50e6, run=1),
            outcome("uftp", 100e6, run=1),
            outcome("deploy-image", 400e6, run=2),
            outcome("udpcast", 100e6, run=2),
        ]
    )
    ratio = cell.ratio(["udpcast", "uftp"], lambda one: one.rate, best=True)
    assert ratio == pytest.approx((200 / 100 + 400 / 100) / 2)


def test_ratio_of_costs_takes_the_lowest_of_the_others():
    (cell,) = report.cells(
        [
            outcome("deploy-image", 1e8, cpu=3.0),
            outcome("udpcast", 1e8, cpu=6.0),
            outcome("uftp", 1e8, cpu=9.0),
        ]
    )
    ratio = cell.ratio(["udpcast", "uftp"], lambda one: one.cpu_per_gigabyte, best=False)
    assert ratio == pytest.approx(0.5)


def test_ratio_without_anything_to_compare_with_is_none():
    (cell,) = report.cells([outcome("deploy-image", 1e8), outcome("uftp", 1e8, whole=0)])
    assert cell.ratio(["uftp"], lambda one: one.rate, best=True) is None


def test_cells_come_in_order_of_loss_and_receivers():
    table = report.cells(
        outcome("uftp", 1e8, receivers=receivers, loss=loss)
        for receivers, loss in ((4, 0.01), (1, 0.01), (2, 0.0))
    )
    assert [(cell.loss, cell.receivers) for cell in table] == [(0.0, 2), (0.01, 1), (0.01, 4)]


def test_rounds_that_were_added_count_by_cell_though_some_hold_other_cells():
    rounds = [
        outcome("uftp", 100e6, run=number, receivers=2 - number % 2, loss=loss)
        for loss in (0.0, 0.01)
        for number in (1, 2, 3)
    ]
    assert report.most_runs(rounds) == 2
    assert "medians of 2 runs" in markdown(rounds)
    assert report.most_runs([]) == 0


def test_table_has_a_row_for_each_program_and_cell():
    text = markdown(
        [outcome("ceiling", 400e6), outcome("deploy-image", 300e6, cpu=2.5, sent_bytes=1_080_000_000)]
    )
    assert row(text, "0 %", "2", "deploy-image") == [
        "0 %",
        "2",
        "deploy-image",
        "300",
        "3.33",
        "4.33",
        "2.50",
        "50%",
        "2.5",
        "50 / 70",
        "1.080",
        "1/1",
    ]
    assert row(text, "0 %", "2", "ceiling")[3] == "400"


def test_summary_tells_ratios_by_loss_and_receivers():
    text = markdown(
        [
            outcome("ceiling", 400e6),
            outcome("uftp", 100e6),
            outcome("deploy-image", 300e6, data_share=1.0),
            outcome("ceiling", 300e6, loss=0.01),
            outcome("uftp", 120e6, loss=0.01),
            outcome("deploy-image", 240e6, loss=0.01, data_share=1.0213),
        ]
    )
    assert row(text, "of the ceiling", "0 %")[2] == "75%"
    assert row(text, "of the ceiling", "1 %")[2] == "80%"
    assert row(text, "rate by the faster peer's", "0 %")[2] == "3.0 x"
    assert row(text, "rate by our own without loss", "1 %")[2] == "80%"
    assert row(text, "data sent by the image's size", "1 %")[2] == "1.021 x"


def test_problems_are_listed_and_leave_a_gap_in_the_table():
    text = markdown([outcome("udpcast", 1e8, whole=1, problem="1 of 2 copies broken")])
    assert row(text, "0 %", "2", "udpcast")[3] == "–"
    assert "- 0 %, N = 2, run 1, udpcast: 1 of 2 copies broken" in text


@pytest.mark.parametrize(("arrived", "told"), [([0.99, 0.985], False), ([0.99, 0.5], True)])
def test_ceiling_that_lost_far_more_than_the_network_is_told(arrived, told):
    text = markdown([outcome("ceiling", 1e8, loss=0.01, details={"arrived": arrived})])
    assert ("- 1 %, N = 2, run 1, ceiling: 50% arrived" in text) is told


def test_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot needs matplotlib: pip install '.[bench]'")
    outcomes = [
        outcome(program, 1e8, receivers=receivers, loss=loss)
        for program in ("ceiling", "uftp", "deploy-image")
        for receivers in (1, 2)
        for loss in (0.0, 0.01)
    ]
    report.plot(outcomes, tmp_path / "plot.png", title="made up")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
