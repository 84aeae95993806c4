"""The report while a run goes on, served to this machine alone."""

import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gptscale.errors import GptscaleError, TrainingError
from gptscale.tracking.page import REFRESH_S, page_data, render


def live_server(run_dirs: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server of the page on loopback, read from the run folders at each request; port 0 takes a free one.

    Raises TrainingError if the port is taken or a folder has nothing to show.
    """
    page_data(run_dirs)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").partition(":")[0].lower() not in ("127.0.0.1", "localhost"):
                self._send(403, "text/plain", "the report is at http://127.0.0.1 only")  # any name may lead here
                return
            try:
                data = page_data(run_dirs, live_s=REFRESH_S)
            except GptscaleError as error:  # such as a record that is being cut back
                self._send(503, "text/plain", str(error))
                return
            if self.path == "/":
                self._send(200, "text/html", render(data))
            elif self.path == "/data.json":
                self._send(200, "application/json", json.dumps(data, allow_nan=False))
            else:
                self._send(404, "text/plain", "there is only the report, at /")

        def _send(self, status: int, kind: str, text: str) -> None:
            body = text.encode(errors="backslashreplace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent: a line for every refresh would bury the address."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise TrainingError(f"--port={port} cannot be used ({error.strerror}); choose another, or 0 for any") from None
