"""Services that speak JSON over HTTP."""

import http.server
import json
import urllib.request

# Longer than a service waits for its stores.
PATIENCE = 3


def serve(answer):
    """Answers each request with what `answer(method, path, body)` returns, on port 80."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            try:
                status, said = 200, answer(self.command, self.path, body)
            except OSError as error:
                status, said = 503, {"error": str(error)}
            said = json.dumps(said).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_POST = reply

        def log_message(self, *_):
            pass

    http.server.ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()


def ask(url, body=None, patience=PATIENCE):
    data = None if body is None else json.dumps(body).encode()
    # no proxy: these are neighbours
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data), timeout=patience) as answer:
        return json.load(answer)
