"""`curfew policy simulate`: the table, the JSON, the page, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from controller.policy.command import main
from controller.simulation.trace import Arrival, write_trace

POLICY = """\
apiVersion: curfew/v1
curves: {c: [[0, 0.4], [100, 0.6], [400, 0.9]]}
defaults: {quality: {curve: c}}
tenants:
  - {name: quick, objectives: {deadline: 3s}}
  - {name: patient, objectives: {deadline: 60s, share: p90}}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A policy, one that never thinks, and a trace of two clients."""
    thinks, never, trace = tmp_path / "thinks.yaml", tmp_path / "never.yaml", tmp_path / "trace.csv"
    thinks.write_text(POLICY)
    never.write_text(POLICY.replace("defaults: {", "defaults: {mode: no_think, "))
    arrivals = [Arrival(n * 0.25, f"client-{n % 2}", 50, 150 + n % 90, 20) for n in range(120)]
    trace.write_text("".join(write_trace(arrivals)))
    return thinks, never, trace


MAP = ["--map", "client-0=quick", "--map", "*=patient"]


def simulate(*arguments: object) -> int:
    return main(["simulate", *map(str, arguments), *MAP])


def test_the_table_tells_each_tenant_under_both_policies(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    thinks, never, trace = files
    assert simulate(thinks, "--trace", trace, "--against", never) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["tenant", "policy", "requests", "kept", "target"]
    assert [line.split()[:2] for line in lines[1::2]] == [
        ["quick", "thinks"],
        ["patient", "thinks"],
        ["all", "thinks"],
    ]
    assert all(line.split()[0] == "never" for line in lines[2::2])
    assert "0/0/100" in lines[2]
    assert max(map(len, lines)) <= 110
    assert "120 requests in 0.496 min on 1 × 9b-h200" in err


def test_json_has_every_figure_of_every_tenant(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    thinks, never, trace = files
    assert simulate(thinks, "--trace", trace, "--against", never, "--json", "--workers", 2) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = told["policies"]
    assert (told["workers"], told["trace"]) == (2, "trace.csv")
    assert [first["file"], second["file"]] == ["thinks", "never"]
    assert set(first["tenants"]) == {"quick", "patient"}
    assert first["all"]["requests"] == 120
    assert first["all"]["target"] is None
    assert first["tenants"]["patient"]["reasoning"] > 100
    assert second["all"]["reasoning"] == 0
    assert second["all"]["quality"] == pytest.approx(0.4)


def test_minutes_and_scales_change_what_comes(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    thinks, _, trace = files
    options = ("--minutes", 0.1, "--time-scale", 2, "--length-scale", 0.1, "--json")
    assert simulate(thinks, "--trace", trace, *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policies"][0]["all"]["requests"] == 24
    assert told["duration_s"] == pytest.approx(11.5)
    assert told["policies"][0]["all"]["reasoning"] < 30


def test_the_page_stands_alone_and_every_plot_is_well_formed(files: tuple[Path, Path, Path]) -> None:
    thinks, never, trace = files
    page = trace.with_name("report.html")
    assert simulate(thinks, "--trace", trace, "--against", never, "--html", page) == 0
    text = page.read_text()
    assert "<script" not in text
    assert not re.search(r"(src|href|url\()", text)
    plots = [ET.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(plots) == 2 + 2 + 1 + 3  # attainment and budgets by tenant, the frontier, the pool's
    for plot in plots:
        _, _, width, height = map(float, plot.attrib["viewBox"].split())
        for mark in plot.iter("circle"):
            assert 0 <= float(mark.attrib["cx"]) <= width
            assert 0 <= float(mark.attrib["cy"]) <= height
    assert text.count('<tr class="first">') == 3


def test_names_of_files_write_nothing_of_their_own_into_page_and_table(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    thinks, never, trace = files
    odd = thinks.rename(thinks.with_name("<b>[red].yaml"))
    page = trace.with_name("report.html")
    assert simulate(odd, "--trace", trace, "--against", never, "--html", page) == 0
    assert "<b>" not in page.read_text()
    assert "&lt;b&gt;[red]" in page.read_text()
    assert "<b>[red]" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_said(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    thinks, _, trace = files
    assert simulate(thinks, "--trace", trace, "--html", trace.parent) == 2
    assert f"{trace.parent}: cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trace", "none.csv"], "none.csv: cannot be read"),
        (["--speed", "9b"], "'9b' is neither a file nor one of 9b-h200"),
        (["--against", "none.yaml"], "none.yaml"),
        (["--map", "client-0=quik"], "'quik' is not a tenant; did you mean quick?"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_and_status_2(
    files: tuple[Path, Path, Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    thinks, _, trace = files
    assert main(["simulate", str(thinks), "--trace", str(trace), *arguments, *MAP]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--time-scale", "0"], ["--workers", "none"], ["--minutes", "x"], ["--map", "quick"]]
)
def test_options_out_of_range_are_refused(
    files: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    thinks, _, trace = files
    with pytest.raises(SystemExit) as error:
        main(["simulate", str(thinks), "--trace", str(trace), *arguments])
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err
