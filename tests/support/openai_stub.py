"""A server that speaks just enough OpenAI for the comparison of servers: `openai_stub.py PORT [HABIT ...]`.

Habits: strict (refuses fields that clients like to send), short (one token less than asked), no-usage,
no-models (fails to list models), burn (works for every request), exit (ends at once with code 7).
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BURN_S = 0.05


class Stub(BaseHTTPRequestHandler):
    habits: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        ok = "no-models" not in self.habits
        self._answer(200 if ok else 500, {"data": [{"id": "stub"}]} if ok else {"detail": "x"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "strict" in self.habits and ("ignore_eos" in body or "model" in body):
            self._answer(422, {"detail": "Unexpected fields"})
            return
        deadline_s = time.thread_time() + BURN_S * ("burn" in self.habits)
        while time.thread_time() < deadline_s:
            pass
        self._stream(len(body["prompt"].split()), body["max_tokens"] - ("short" in self.habits))

    def _stream(self, num_prompt: int, num_tokens: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for index in range(num_tokens):
            reason = "length" if index == num_tokens - 1 else None
            self._event({"choices": [{"text": " w1", "finish_reason": reason}]})
        if "no-usage" not in self.habits:
            self._event({"usage": {"prompt_tokens": num_prompt, "completion_tokens": num_tokens}})

    def _event(self, body: object) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    # a burst of connections must not wait for a retransmission
    request_queue_size = 128


if __name__ == "__main__":
    Stub.habits = frozenset(sys.argv[2:])
    if "exit" in Stub.habits:
        print("the reason is here", flush=True)
        sys.exit(7)
    Server(("127.0.0.1", int(sys.argv[1])), Stub).serve_forever()
