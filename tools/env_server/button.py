"""A person ends an episode as success or failure: two buttons on a page, HTTP, or the keyboard."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from .messages import ServeError, say
from .network import has_token
from .player import Player

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Success button</title>
<style>
body{margin:0;height:100dvh;display:flex;flex-direction:column;font:18px system-ui,sans-serif;
background:#111;color:#eee}
main{flex:1;display:flex;flex-direction:column;gap:16px;padding:16px}
button{flex:1;border:0;border-radius:20px;font-size:40px;font-weight:600;color:#fff}
button:disabled{opacity:.3}#success{background:#0072b2}#failure{background:#d55e00;flex:.6}
p{margin:0;padding:16px 16px 0;min-height:2.6em;white-space:pre-line}
</style></head><body><p id="status" role="status"></p><main>
<button id="success">Success</button><button id="failure">Failure</button></main><script>
const token = location.hash.slice(1), buttons = document.querySelectorAll("button");
const headers = token ? {Authorization: "Api-Key " + token} : {};
const show = text => document.getElementById("status").textContent = text;
async function look() {
  try {
    const reply = await fetch("status", {headers});
    if (!reply.ok) throw await reply.text();
    const s = await reply.json();
    buttons.forEach(b => b.disabled = !s.running);
    show(s.name + ": " + (s.running ? "episode " + s.episode + ", step " + s.step : "waiting")
      + "\\n" + (s.verdict ? s.verdict + " noted" : s.last));
  } catch (error) { buttons.forEach(b => b.disabled = true); show("not connected: " + error); }
}
buttons.forEach(b => b.onclick = async () => {
  await fetch(b.id, {method: "POST", headers}).catch(() => 0); look(); });
look(); setInterval(look, 500);
</script></body></html>
"""


class Buttons(ThreadingHTTPServer):
    """The page, ``/status``, and POST ``/success`` and ``/failure``; serves in threads."""

    daemon_threads = True

    def __init__(self, player: Player, host: str, port: int, token: str) -> None:
        self.player, self.token = player, token
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            where = f"{host}:{port}"
            raise ServeError(f"--button_port: cannot listen at {where} ({error})") from None

    def server_bind(self) -> None:
        """As usual, but without asking for the host's name: many robots have no name server."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def start(self) -> int:
        """Serve in another thread; returns the port."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Buttons
    timeout = 10  # seconds for a slow client

    def do_GET(self) -> None:
        if self.path == "/":
            self._reply(200, PAGE, "text/html; charset=utf-8")
        elif self.path != "/status":
            self._reply(404, "expected / or /status\n")
        elif self._admitted():
            self._reply(200, json.dumps(self.server.player.status()), "application/json")

    def do_POST(self) -> None:
        if self.path not in ("/success", "/failure"):
            self._reply(404, "expected /success or /failure\n")
        elif self._admitted():
            good, line = self.server.player.press(self.path[1:])
            self._reply(200 if good else 409, line + "\n")

    def _admitted(self) -> bool:
        origin, place = self.headers.get("Origin"), self.headers.get("Host", "")
        if origin is not None and origin.partition("://")[2] != place:
            self._reply(403, "another site may not press the buttons\n")
            return False
        if not has_token(self.headers.get_all("Authorization", []), self.server.token):
            self._reply(401, "expected the header 'Authorization: Api-Key TOKEN'\n")
            return False
        return True

    def _reply(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Episodes are printed, requests are not."""


def watch_keyboard(player: Player) -> None:
    """s and Enter: success; f and Enter: failure."""
    for line in sys.stdin:
        verdict = {"s": "success", "f": "failure"}.get(line.strip().lower())
        say(player.press(verdict)[1] if verdict else "type s (success) or f (failure) and Enter")
