"""`curfew top`: how tenants and workers stand, live in a terminal, over the controller's admin address."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from curfew.cli import options as cli
from curfew.cli.as_json import as_dict
from curfew.cli.exits import ending
from curfew.client import Tls
from curfew.client.connection import Connection, Metadata
from curfew.rpc.durations import seconds
from curfew.v1 import admin_pb2, admin_pb2_grpc

CALL_TIMEOUT_S = 5.0
PAGE = 100
"""Tenants asked for at once: the controller writes them between two tokens of its streams."""
_STATUSES = {  # as with the commands that ask
    grpc.StatusCode.UNAUTHENTICATED: 4,
    grpc.StatusCode.PERMISSION_DENIED: 4,
    grpc.StatusCode.UNAVAILABLE: 6,
    grpc.StatusCode.DEADLINE_EXCEEDED: 6,
}
FRAME_LINES = 10
"""Of a screen, beside the rows of the tables: titles, headers, margins."""

SOURCE = {
    admin_pb2.WORKER_SOURCE_STATIC: "static",
    admin_pb2.WORKER_SOURCE_ANNOUNCED: "announced",
    admin_pb2.WORKER_SOURCE_DNS: "dns",
}
SOURCES_WIDTH = 100
"""Of a terminal in which there is room for who names the workers."""
BROWNOUT = {
    admin_pb2.BROWNOUT_UNSPECIFIED: Text("-", "dim"),
    admin_pb2.BROWNOUT_NONE: Text("none", "green"),
    admin_pb2.BROWNOUT_LESS: Text("less", "yellow"),
    admin_pb2.BROWNOUT_NO_THINK: Text("no_think", "yellow"),
    admin_pb2.BROWNOUT_QUEUE: Text("queue", "red"),
    admin_pb2.BROWNOUT_REJECT: Text("reject", "red"),
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a controller said of itself at one moment. standings: of all tenants, by name."""

    address: str
    status: admin_pb2.GetStatusResponse
    standings: tuple[admin_pb2.TenantStanding, ...]

    def as_json(self) -> str:
        """One line; the same fields every time."""
        return json.dumps(
            {
                "address": self.address,
                "status": as_dict(self.status),
                "tenants": [as_dict(standing) for standing in self.standings],
            }
        )


@cli.made_by(tls=cli.tls_of)
def top(
    *,
    admin: Annotated[
        str, typer.Option(envvar="CURFEW_ADMIN", metavar="HOST:PORT", help="The controller, for operators.")
    ] = "127.0.0.1:7201",
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line each time.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600.0, help="Seconds between looks.")] = 1.0,
    key: Annotated[
        str, typer.Option(envvar="CURFEW_ADMIN_KEY", help="An operator's key, where one is needed.")
    ] = "",
    tls: Tls | None,
) -> None:
    """Watch how tenants and workers stand, until Ctrl-C.

    Exits with 4 when it is not let in, 6 when the controller cannot be reached.
    """
    with ending("top"):
        connection = Connection(admin, key, tls)
    with connection.open(admin) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)

        def look() -> Snapshot:
            return read_snapshot(stub, admin, connection.metadata)

        try:
            if once or as_json or not sys.stdout.isatty():
                _print(look, once, as_json, interval)
            else:
                _watch(look, admin, interval)
        except grpc.RpcError as error:
            print(f"curfew top: {admin}: {_told(error)}", file=sys.stderr)
            raise typer.Exit(_STATUSES.get(_code(error), 1)) from None
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def read_snapshot(stub: admin_pb2_grpc.AdminServiceStub, address: str, metadata: Metadata = ()) -> Snapshot:
    """Asks for everything, tenants page by page. Raises grpc.RpcError."""
    status = stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S, metadata=metadata)
    return Snapshot(address, status, tuple(_standings(stub, metadata)))


def _standings(
    stub: admin_pb2_grpc.AdminServiceStub, metadata: Metadata
) -> Iterator[admin_pb2.TenantStanding]:
    request = admin_pb2.ListTenantStandingsRequest(page_size=PAGE)
    while True:
        response = stub.ListTenantStandings(request, timeout=CALL_TIMEOUT_S, metadata=metadata)
        yield from response.standings
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def _print(look: Callable[[], Snapshot], once: bool, as_json: bool, interval_s: float) -> None:
    console = Console(highlight=False)
    while True:
        snapshot = look()
        if as_json:
            print(snapshot.as_json(), flush=True)
        else:
            console.print(screen(snapshot, console.width, len(snapshot.standings)))
        if once:
            return
        time.sleep(interval_s)


def _watch(look: Callable[[], Snapshot], address: str, interval_s: float) -> None:
    """Until Ctrl-C. A controller that cannot be reached is asked again."""
    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                snapshot = look()
                rows = max(3, console.height - FRAME_LINES - _lines_below(snapshot))
                live.update(screen(snapshot, console.width, rows), refresh=True)
            except grpc.RpcError as error:
                live.update(Text(f"{address}: {_told(error)}", "red"), refresh=True)
            time.sleep(interval_s)


def screen(snapshot: Snapshot, width: int, rows: int) -> RenderableType:
    """Everything, in so many columns and with at most so many tenants: those of which most comes."""
    status = snapshot.status
    busiest = sorted(snapshot.standings, key=lambda s: (-s.rate_per_s, -s.requests, s.tenant))
    shown = sorted(busiest[:rows], key=lambda s: s.tenant)
    parts: list[RenderableType] = [_head(snapshot), *_troubles(status), Text(), _tenants(shown, width)]
    if len(shown) < len(busiest):
        parts.append(Text(f"and {len(busiest) - len(shown)} with less traffic", "dim"))
    parts += [Text(), _workers(status.workers, width)]
    if status.HasField("shadow"):
        parts += [Text(), _shadow(status.shadow, [s for s in shown if s.shadow.compared], width)]
    return Group(*parts)


def _lines_below(snapshot: Snapshot) -> int:
    """Lines that the tables below that of the tenants take at most."""
    status = snapshot.status
    return len(status.workers) + (len(snapshot.standings) + 3 if status.HasField("shadow") else 0)


def _head(snapshot: Snapshot) -> Text:
    status = snapshot.status
    load = f"{status.load:.0%}" if status.HasField("load") else "no worker"
    facts = [f"load {load}", f"price {status.price:.3g}", f"waiting {status.waiting}"]
    if status.HasField("recording") and not status.recording.failure:
        facts.append(f"recorded {status.recording.written}")
    began = f"  up {_long(status.uptime)}  policy {status.policy_version}\n"
    return Text.assemble((snapshot.address, "bold"), began, "  ".join(facts))


def _troubles(status: admin_pb2.GetStatusResponse) -> Iterator[Text]:
    if status.state.HasField("outage"):
        away = f"the store has been away for {_long(status.state.outage)}, so it decides alone"
        yield Text(f"{away}: {_first_line(status.state.why)}", "red")
    if status.rejected:
        yield Text(f"the policy file is refused: {_first_line(status.rejected)}", "red")
    if status.shadow.rejected:
        yield Text(f"the shadow policy is refused: {_first_line(status.shadow.rejected)}", "red")
    if status.shadow.faults:
        yield Text(f"the shadow policy failed for {status.shadow.faults} requests", "red")
    recording = status.recording
    if recording.failure:
        yield Text(f"nothing is recorded: {recording.failure} ({recording.lost} requests lost)", "red")
    elif recording.lost:
        yield Text(f"{recording.lost} requests were not recorded", "yellow")


def _tenants(standings: Iterable[admin_pb2.TenantStanding], width: int) -> Table:
    table = _table(
        width,
        "tenant",
        ("req/s", 6),
        ("now", 4),
        ("kept", 5),
        ("of", 5),
        ("median", 7),
        ("think", 5),
        ("budget", 6),
        ("squeezed", 8),
        ("price", 7),
    )
    for s in standings:
        share = s.kept / s.answered if s.answered else None
        style = "" if share is None else "green" if share >= s.target_share else "red"
        table.add_row(
            s.tenant,
            f"{s.rate_per_s:.3g}",
            str(s.in_flight),
            Text("-" if share is None else f"{100 * share:.1f}", style),
            f"{100 * s.target_share:.4g}%",
            _short(s.median_latency) if s.answered else "-",
            "-" if s.brownout == admin_pb2.BROWNOUT_UNSPECIFIED else f"{s.think_share:.0%}",
            f"{s.mean_budget_tokens:.0f}" if s.think_share else "-",
            BROWNOUT[s.brownout],
            f"{s.price:.3g}",
        )
    return table


def _workers(workers: Iterable[admin_pb2.WorkerStatus], width: int) -> Table:
    table = _table(
        width,
        "worker",
        ("state", 9),
        ("running", 8),
        ("waiting", 7),
        ("pages free", 10),
        ("step", 7),
        ("tokens/s", 8),
        *([("named by", 16)] if width >= SOURCES_WIDTH else []),
    )
    for w in workers:
        known = w.available
        table.add_row(
            w.address,
            _state(w),
            f"{w.load.running}/{w.slots}" if known else "-",
            str(w.load.waiting) if known else "-",
            str(w.load.free_pages) if known else "-",
            _short(w.load.step) if known and w.load.HasField("step") else "-",
            f"{w.load.tokens_per_s:.0f}" if known else "-",
            *(["+".join(SOURCE[source] for source in w.sources) or "-"] if width >= SOURCES_WIDTH else []),
        )
    return table


def _state(w: admin_pb2.WorkerStatus) -> Text:
    if w.available:
        return Text("serving", "green") if w.slow_start in (0.0, 1.0) else Text("warming", "yellow")
    if w.HasField("ejected"):
        return Text("ejected", "red")
    if w.draining:
        return Text("draining", "yellow")
    return Text("lost" if w.HasField("silent") else "new", "red")


def _shadow(
    shadow: admin_pb2.ShadowStatus, standings: Iterable[admin_pb2.TenantStanding], width: int
) -> RenderableType:
    table = _table(
        width,
        "tenant",
        ("decided", 7),
        ("admission", 9),
        ("mode", 6),
        ("budget", 6),
        ("tokens", 6),
        ("promised", 8),
        ("latency", 9),
    )
    for s in standings:
        d = s.shadow
        table.add_row(
            s.tenant,
            str(d.compared),
            f"{d.admission / d.compared:.1%}",
            f"{d.mode / d.compared:.1%}",
            f"{d.budget / d.compared:.1%}",
            f"{d.mean_budget_delta_tokens:+.0f}",
            f"{100 * d.mean_promised_delta:+.1f}%",
            f"{1e3 * seconds(d.mean_predicted_delta):+.0f} ms",
        )
    version = f" {shadow.policy_version}" if shadow.policy_version else ""
    return Group(Text(f"the shadow policy{version} would do otherwise"), table)


def _table(width: int, name: str, *columns: tuple[str, int]) -> Table:
    """Columns of at least these widths. Where there is no room, names are cut and numbers are not."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    room = width - sum(least + 1 for _, least in columns) - 1
    table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=max(12, room))
    for title, least in columns:
        table.add_column(title, justify="right", min_width=least, no_wrap=True)
    return table


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN


def _told(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _short(duration: Duration) -> str:
    length_s = seconds(duration)
    return f"{length_s:.2f} s" if length_s >= 1 else f"{1e3 * length_s:.3g} ms"


def _long(duration: Duration) -> str:
    minutes, rest_s = divmod(round(seconds(duration)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest_s:02}s" if minutes else f"{rest_s}s"
