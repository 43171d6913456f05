"""The client of a budgeted training service."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from rslm.run_folder import Row

_MAX_ANSWER_BYTES = 64 << 20
_POLL_SECONDS = 0.5


class BudgetClient:
    """Asks a service of `rslm scaling serve` for runs.

    All calls raise `OSError` where the service does not answer.

    Args:
        url: as the service prints it, http://127.0.0.1:8000.
        timeout: seconds that an answer may take.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        if not url.startswith("http://"):
            raise ValueError(f"url must begin with http://, got {url!r}")
        self._url, self._timeout = url.rstrip("/"), timeout
        # No proxy: the service is on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def submit(self, options: Mapping[str, Any]) -> Row:
        """Reserves and queues a run; its `id` is what `run` and `wait` take.

        Raises:
            ValueError: there is one like it, or the service refuses it; the message is its.
        """
        return dict(self._call("/runs", options))

    def runs(self) -> list[Row]:
        """All runs."""
        return list(self._call("/runs"))

    def run(self, id: str) -> Row:
        """A run with its losses so far.

        Raises:
            ValueError: there is no such run.
        """
        return dict(self._call(f"/runs/{id}"))

    def wait(self, id: str, *, seconds: float = float("inf")) -> Row:
        """The run once it has ended.

        Raises:
            TimeoutError: it has not ended by then.
            ValueError: there is no such run.
        """
        deadline = time.monotonic() + seconds
        while (found := self.run(id))["status"] == "waiting":
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {id} has not ended within {seconds:g} seconds")
            time.sleep(_POLL_SECONDS)
        return found

    def budget(self) -> Row:
        """FLOPs in all, charged, reserved and left."""
        return dict(self._call("/budget"))

    def predict(
        self, *, flop_budget: float, n_parameters: float, n_tokens: float, loss: float
    ) -> Row:
        """Makes the one prediction.

        Raises:
            ValueError: it was made before, or a number is none.
        """
        return dict(
            self._call(
                "/prediction",
                {
                    "flop_budget": flop_budget,
                    "n_parameters": n_parameters,
                    "n_tokens": n_tokens,
                    "loss": loss,
                },
            )
        )

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(f"{self._url}{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return json.loads(answer.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(_MAX_ANSWER_BYTES).decode(errors="replace")
            raise ValueError(_message(text, error.code)) from None


def _message(text: str, code: int) -> str:
    """What the service says of an error."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered {code}: {text:.200}"
