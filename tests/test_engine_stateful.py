"""An engine under requests that come, run and are cancelled in any order.

Whatever happens, ids are those of plain decoding, blocks are counted right after every step, and
none is held once nothing runs.
"""

from dataclasses import replace
from typing import Any

from engines import block_bytes, check_at_rest, make_engine, plain_ids, tiny_model
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rslm.infer import DraftModel, PromptLookup, QueueFull, SamplingParameters
from rslm.infer.requests import Request

MODEL = tiny_model()
PROMPTS = st.builds(
    lambda shared, own: [7] * shared + own,
    st.integers(0, 12),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
)
PARAMETERS = st.builds(
    SamplingParameters,
    max_new_tokens=st.integers(0, 12),
    temperature=st.sampled_from([0.0, 0.6, 1.0]),
    top_p=st.sampled_from([None, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.7]),
    stop=st.sampled_from([(), ("e", "\n"), ("ab",)]),
    seed=st.integers(0, 3),
    n=st.integers(1, 3),
    log_probs=st.sampled_from([None, 1]),
    prompt_log_probs=st.booleans(),
)


class EngineMachine(RuleBasedStateMachine):
    """Submit, step and cancel."""

    @initialize(
        block_size=st.integers(1, 5),
        max_sequences=st.integers(1, 6),
        max_step_tokens=st.integers(1, 20),
        n_spare=st.integers(0, 12),
        prefix_cache=st.booleans(),
        speculation=st.sampled_from(
            [None, PromptLookup(n_draft=3, max_ngram=2), DraftModel(MODEL, 2)]
        ),
    )
    def make(self, block_size: int, n_spare: int, speculation: Any, **options: Any) -> None:
        # Room for the longest request, and a little more, in blocks of one or two models.
        n_blocks = -(-36 // block_size) + n_spare
        n_models = 2 if isinstance(speculation, DraftModel) else 1
        self.engine = make_engine(
            MODEL,
            block_size=block_size,
            cache_bytes=n_blocks * n_models * block_bytes(MODEL, block_size),
            max_queued=9,
            speculation=speculation,
            **options,
        )
        self.requests: list[Request] = []
        self.drawn: dict[tuple[Request, int], list[int]] = {}

    @rule(prompt=PROMPTS, parameters=PARAMETERS)
    def submit(self, prompt: list[int], parameters: SamplingParameters) -> None:
        n_waiting = self.engine.statistics().n_waiting
        try:
            self.requests.append(self.engine.submit(prompt, parameters))
            assert n_waiting + parameters.n <= 9
        except QueueFull:
            assert n_waiting + parameters.n > 9

    @rule(n=st.integers(1, 5))
    def step(self, n: int) -> None:
        for _ in range(n):
            for request, chunk in self.engine.step():
                self.drawn.setdefault((request, chunk.index), []).extend(chunk.token_ids)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        was_done = [sequence.completion for sequence in request.sequences]
        self.engine.cancel(request)
        assert request.is_done
        assert all(not sequence.blocks for sequence in request.sequences)
        for before, after in zip(was_done, request.completions, strict=True):
            assert after is before or after.finish_reason == "cancelled"

    @rule()
    def change_weights(self) -> None:
        """To the same ones, so that ids stay what they are."""
        self.engine.update_weights()

    @invariant()
    def blocks_are_counted_right(self) -> None:
        scheduler = self.engine._scheduler
        assert all(not sequence.blocks for sequence in scheduler.waiting)
        self.engine._manager.check([sequence.blocks for sequence in scheduler.running])
        assert len(scheduler.running) <= self.engine.options.max_sequences

    def teardown(self) -> None:
        """Everything ends, with the ids that each has alone."""
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if not self.engine.has_work:
                break
            self.step(1)
        check_at_rest(self.engine)
        for request in self.requests:
            parameters = replace(request.parameters, seed=request.seed)
            for completion in request.completions:
                found = list(completion.token_ids)
                assert self.drawn.get((request, completion.index), []) == found
                expected = plain_ids(list(request.prompt_ids), parameters, completion.index)
                assert found == expected[: len(found)]
                if completion.finish_reason == "length":
                    assert len(found) == parameters.max_new_tokens
                scores = completion.prompt_log_probs
                if scores is not None and completion.finish_reason != "cancelled":
                    assert None not in scores[1:]


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    stateful_step_count=20, max_examples=settings.default.max_examples // 4
)
