"""Small pictures, and a server that has them."""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
from collections.abc import Iterator, Mapping

RED, BLUE, GREEN, YELLOW = (220, 30, 30), (30, 60, 220), (30, 170, 50), (240, 220, 40)


def png(colour: tuple[int, int, int], size: tuple[int, int] = (80, 60)) -> bytes:
    """A picture of one colour."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@contextlib.contextmanager
def served(files: Mapping[str, bytes]) -> Iterator[str]:
    """The address of a server that has these files, and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path.partition("?")[0])
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
