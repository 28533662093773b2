"""HTTP/1.1 as uvicorn speaks it, but for one thing."""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """Answers what is no HTTP once at most, and takes the caller for gone.

    uvicorn alone would answer it whatever it has begun to answer, or the application is about to. The second
    answer is refused, with a traceback in the log for whoever sends such bytes.
    """

    def send_400_response(self, msg: str) -> None:
        """Ends the connection, with a word where none was said."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
