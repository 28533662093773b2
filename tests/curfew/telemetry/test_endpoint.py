"""The metrics endpoint, over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from curfew.telemetry import prometheus
from curfew.telemetry.metric import Histogram, Kind, Metric, Reading
from curfew.telemetry.options import TelemetryError, add_telemetry_options, metrics_endpoint

REQUESTS = Metric("curfew_requests_total", Kind.COUNTER, "Requests.", ("tenant",))
SLOTS = Metric("curfew_pool_slots", Kind.GAUGE, "Slots.")
LATENCY = Metric("curfew_latency_seconds", Kind.HISTOGRAM, "Latency.", ("tenant",), (0.1, 1.0))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def read() -> Iterator[Reading]:
    histogram = Histogram(LATENCY.buckets)
    histogram.observe(0.5, TRACE)
    yield REQUESTS.at(3, 'he said "hi"')
    yield SLOTS.at(32)
    yield LATENCY.at(histogram, "support")


async def scrape(address: str, accept: str = "") -> list[str]:
    def get() -> str:
        request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=20) as response:
            return str(response.read().decode())

    return (await asyncio.to_thread(get)).splitlines()


async def test_counters_gauges_and_histograms_are_served_in_the_text_format() -> None:
    async with metrics_endpoint("127.0.0.1:0", read) as address:
        assert address is not None
        lines = await scrape(address)
    assert r'curfew_requests_total{tenant="he said \"hi\""} 3.0' in lines
    assert "curfew_pool_slots 32.0" in lines
    assert [line for line in lines if line.startswith("curfew_latency_seconds_")] == [
        'curfew_latency_seconds_bucket{le="0.1",tenant="support"} 0.0',
        'curfew_latency_seconds_bucket{le="1.0",tenant="support"} 1.0',
        'curfew_latency_seconds_bucket{le="+Inf",tenant="support"} 1.0',
        'curfew_latency_seconds_count{tenant="support"} 1.0',
        'curfew_latency_seconds_sum{tenant="support"} 0.5',
    ]
    assert any(line.startswith("process_cpu_seconds_total ") for line in lines)


async def test_exemplars_lead_to_traces_in_open_metrics() -> None:
    async with metrics_endpoint("127.0.0.1:0", read) as address:
        assert address is not None
        lines = await scrape(address, OPEN_METRICS)
    assert (
        f'curfew_latency_seconds_bucket{{le="1.0",tenant="support"}} 1.0 # {{trace_id="{TRACE}"}} 0.5'
        in lines
    )
    assert lines[-1] == "# EOF"


async def test_a_scrape_fails_while_the_service_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "READ_TIMEOUT_S", 0.05)
    async with metrics_endpoint("127.0.0.1:0", read) as address:
        assert address is not None

        def get() -> int:
            try:
                urllib.request.urlopen(f"http://{address}/metrics", timeout=20).close()
            except urllib.error.HTTPError as error:
                error.close()
                return error.code
            return 200

        with ThreadPoolExecutor() as pool:
            assert pool.submit(get).result(20) == 500  # and the loop does nothing meanwhile


async def test_nothing_is_served_when_nobody_asks() -> None:
    async with metrics_endpoint(None, read) as address:
        assert address is None


async def test_an_address_in_use_is_said() -> None:
    async with metrics_endpoint("127.0.0.1:0", read) as address:
        with pytest.raises(TelemetryError, match=f"--metrics: cannot listen on {address}"):
            async with metrics_endpoint(address, read):
                pass


@pytest.mark.parametrize("wrong", [["--metrics", "here"], ["--metrics", ":70000"], ["--trace-ratio", "2"]])
def test_a_wrong_value_is_said(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_telemetry_options(parser)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(wrong)
    assert f"{wrong[0]}: {wrong[1]!r} is not" in capsys.readouterr().err


async def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "curfew.telemetry.prometheus")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(
        TelemetryError, match=r"--metrics needs prometheus_client: pip install 'curfew\[telemetry\]'"
    ):
        async with metrics_endpoint("127.0.0.1:0", read):
            pass
