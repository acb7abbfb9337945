#!/usr/bin/env python3
"""Google's XML API on top of an S3 server, as much of it as `gs://` clouds use: for drills, where no Google is within reach.

usage: gcs_shim.py PORT S3_URL          serves bucket NAME of Google as bucket NAME of the S3 server, which must take
                                        requests without credentials for it

Bodies, ranges, lists and errors are the same in both; conditions and versions have other names. There is no login, and a
generation is told from the ETag, so it changes with contents only: enough for a client that creates and replaces.
"""

import http.client
import http.server
import socketserver
import sys
import urllib.parse
import zlib

# Headers that mean the same to both sides.
ASKED = ("range", "content-type", "if-match", "if-none-match")
TOLD = ("content-type", "content-range", "etag", "last-modified", "accept-ranges")
BODY_BYTES_MAX = 64 << 20


class Shim(http.server.BaseHTTPRequestHandler):
    """One connection of a client, with one to the S3 server behind it."""

    protocol_version = "HTTP/1.1"
    server_version = "gcs-shim"
    s3, upstream = None, None

    def forward(self):
        length = int(self.headers.get("content-length") or 0)
        if length > BODY_BYTES_MAX or "chunked" in self.headers.get("transfer-encoding", ""):
            return self.refuse(413, "EntityTooLarge")
        body = self.rfile.read(length)
        asked = {name: self.headers[name] for name in ASKED if name in self.headers}
        condition = self.headers.get("x-goog-if-generation-match")
        if condition == "0":
            asked["if-none-match"] = "*"
        elif condition is not None:
            return self.refuse(501, "NotImplemented")
        if self.command == "PUT":
            asked["content-length"] = str(length)
        answer, told = self.ask(body, asked)
        self.send_response_only(answer.status)
        for name in TOLD:
            if answer.headers.get(name):
                self.send_header(name, answer.headers[name])
        if answer.headers.get("etag"):
            self.send_header("x-goog-generation", str(1 + zlib.crc32(answer.headers["etag"].encode())))
        if answer.status != 204:
            size = answer.headers.get("content-length") if self.command == "HEAD" else len(told)
            self.send_header("content-length", size or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)

    def ask(self, body, headers):
        """The S3 server's answer; a connection that it closed in between is opened anew once."""
        for attempt in (0, 1):
            if self.upstream is None:
                self.upstream = http.client.HTTPConnection(self.s3.hostname, self.s3.port, timeout=60)
            try:
                self.upstream.request(self.command, self.path, body or None, headers)
                answer = self.upstream.getresponse()
                return answer, answer.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self.upstream.close()
                self.upstream = None
                if attempt:
                    raise

    def refuse(self, status, code):
        body = f"<Error><Code>{code}</Code></Error>".encode()
        self.close_connection = True
        self.send_response_only(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = forward

    def log_message(self, *_):
        """Says nothing of single requests."""


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    Shim.s3 = urllib.parse.urlparse(sys.argv[2])
    Server(("127.0.0.1", int(sys.argv[1])), Shim).serve_forever()
