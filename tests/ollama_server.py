"""A local server that speaks Ollama's own protocol: what an older local model is to the tests."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from quantum_orchestrator.blocks.model import OLLAMA, ModelSettings, Question
from quantum_orchestrator.blocks.ollama_provider import OllamaProvider
from quantum_orchestrator.tasks.operation import CancelToken

RIGHT = {"model": "llama", "response": "Hello.", "done": True, "prompt_eval_count": 7, "eval_count": 2}


class Ollama:
    """A server that answers with `status` and `body`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, json.dumps(RIGHT).encode()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers = threading.Event()
        self.answers.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append((self.path, body))
                server.answers.wait(20)
                self.send_response(server.status)
                self.send_header("content-length", str(len(server.body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # whoever asked may not wait for it any more
                    self.wfile.write(server.body)

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def reply(self, question: Question | None = None, *, seconds: float = 20, path: str = "", **settings: Any) -> Any:
        asked = question or Question.of("Say hello.", system="Be short.")
        chosen = ModelSettings(OLLAMA, "llama", self.url + path, **settings)
        return OllamaProvider().reply(asked, chosen, seconds=seconds, cancel=CancelToken())

    def close(self) -> None:
        self.answers.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
