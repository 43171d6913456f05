"""What the server counts, and how it tells."""

from collections import Counter
from collections.abc import Callable

from rslm.infer.metrics import Histogram, Text
from rslm.infer.model_pool import ModelPool
from rslm.infer.parameters import Completion

PATHS = frozenset(
    {"/", "/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions"}
    | {"/tokenize", "/detokenize"}
)


class ServerMetrics:
    """Counts of requests and completions; everything else is asked of the pool."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()
        self._finished: Counter[tuple[str, ...]] = Counter()
        self._request_seconds = Histogram()
        self._first_token_seconds = Histogram()
        self._token_seconds = Histogram()
        self.n_connections: Callable[[], int] = lambda: 0

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request; paths that do not exist count as one."""
        if path not in PATHS:
            path = "/v1/models" if path.startswith("/v1/models/") else "other"
        self._requests[path, str(status)] += 1
        self._request_seconds.add(seconds)

    def note_completion(self, completion: Completion) -> None:
        """Counts a completion and its speed."""
        self._finished[(completion.finish_reason,)] += 1
        n = len(completion.token_ids)
        if n:
            self._first_token_seconds.add(completion.first_token_seconds)
        if n > 1:
            rest = completion.seconds - completion.first_token_seconds
            self._token_seconds.add(rest / (n - 1))

    def text(self, pool: ModelPool) -> str:
        """All numbers, in Prometheus' format."""
        text = Text()
        text.counter("requests", "Requests answered.", self._requests.items(), "path", "status")
        text.histogram("request_seconds", "From request to answer's end.", self._request_seconds)
        text.counter("completions", "Completions that ended.", self._finished.items(), "reason")
        text.histogram(
            "first_token_seconds", "From submission to first token.", self._first_token_seconds
        )
        text.histogram("token_seconds", "From token to token.", self._token_seconds)
        text.gauge("connections", "Open connections.", [((), self.n_connections())])
        text.gauge("model_waiting", "Requests that wait for their model.", [((), pool.n_waiting)])
        text.counter("model_loads", "Models loaded.", [((), pool.n_loads)])
        self._engines(text, pool)
        return str(text)

    def _engines(self, text: Text, pool: ModelPool) -> None:
        """What each loaded model's engine says of itself."""
        services = [((name,), loaded.service) for name, loaded in pool.loaded.items()]
        well = [(name, float(service.broken is None)) for name, service in services]
        text.gauge("model_loaded", "1 for a loaded model, 0 for a broken one.", well, "model")
        failed = [(name, service.counts.n_failed_steps) for name, service in services]
        text.counter("failed_steps", "Steps that failed.", failed, "model")
        seconds = [(name, service.counts.step_seconds) for name, service in services]
        text.counter("step_seconds", "Time in the engine.", seconds, "model")
        told = [(name, s.statistics) for name, s in services if s.statistics is not None]
        for field, kind, help in ENGINE_FIELDS:
            values = [(name, float(getattr(statistics, field))) for name, statistics in told]
            shown = field.removeprefix("n_")
            (text.counter if kind == "counter" else text.gauge)(shown, help, values, "model")


ENGINE_FIELDS = (
    ("n_running", "gauge", "Sequences that run."),
    ("n_waiting", "gauge", "Sequences that wait for their turn."),
    ("n_blocks", "gauge", "Blocks of the cache."),
    ("n_free_blocks", "gauge", "Blocks of the cache that no sequence holds."),
    ("prompt_tokens", "counter", "Tokens of prompts that were read."),
    ("generated_tokens", "counter", "Tokens that were drawn."),
    ("prefix_lookups", "counter", "Tokens of prompts looked for in the prefix cache."),
    ("prefix_hits", "counter", "Tokens of prompts found in the prefix cache."),
    ("draft_proposed", "counter", "Drafted tokens that were verified."),
    ("draft_accepted", "counter", "Drafted tokens that were right."),
    ("preemptions", "counter", "Sequences that lost their blocks and were read again."),
    ("steps", "counter", "Steps of the engine."),
)
"""What `EngineStatistics` says; counts begin anew with each engine."""
