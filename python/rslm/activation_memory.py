"""The arrays that a forward pass keeps for its backward pass, from the model's config. No torch.

`saved_activations` walks the model's operations in their order and notes what each leaves
behind, in eager PyTorch with its derivatives; a switch of `TransformerConfig` changes the walk
as it changes the model. A compiled pass keeps less.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rslm.architecture import TransformerConfig, has_final_norm
from rslm.head_chunks import chunk_tokens

AttentionKind = Literal["torch", "reference"]
DeviceKind = Literal["cpu", "gpu"]

_WIDE = 4
"""Bytes of a number in float32: norms, the residual stream by default, the loss."""


class _Array:
    """One tensor: told apart by identity, as a tensor's storage is."""

    def __init__(self, numel: int, itemsize: int) -> None:
        self.numel, self.itemsize = numel, itemsize

    @property
    def n_bytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What of a run decides which arrays a forward pass keeps."""

    config: TransformerConfig
    n_sequences: int
    itemsize: int
    casts_weights: bool
    attention: AttentionKind
    device: DeviceKind

    @property
    def length(self) -> int:
        return self.config.context_length

    @property
    def n_tokens(self) -> int:
        return self.n_sequences * self.config.context_length

    @property
    def head_chunk(self) -> int:
        return chunk_tokens(self.n_tokens, self.config.resolved_vocab_size, self.device)


class _Tape:
    """The arrays kept for the backward pass, each counted once."""

    def __init__(self, of: _Pass) -> None:
        self.of = of
        self._kept: dict[int, _Array] = {}

    @property
    def n_bytes(self) -> int:
        return sum(array.n_bytes for array in self._kept.values())

    def keep(self, *arrays: _Array) -> None:
        """Notes arrays; one that is noted already costs nothing."""
        self._kept |= {id(array): array for array in arrays}

    def keep_new(self, numel: int, itemsize: int = _WIDE) -> None:
        self.keep(_Array(numel, itemsize))

    def linear(self, x: _Array, d_in: int, d_out: int) -> _Array:
        """Keeps its input, which autocast copies anew for each product, as it does weights."""
        if self.of.itemsize < x.itemsize:
            x = _Array(x.numel, self.of.itemsize)
        self.keep(x)
        if self.of.casts_weights:
            self.keep_new(d_in * d_out, self.of.itemsize)
        return _Array(x.numel // d_in * d_out, self.of.itemsize)

    def norm(self, x: _Array, width: int, *, gain: bool = True) -> _Array:
        """Keeps its input in float32, the inverse roots, and with a gain what it multiplies."""
        wide = x if x.itemsize == _WIDE else _Array(x.numel, _WIDE)
        self.keep(wide)
        self.keep_new(x.numel // width)
        if gain:
            self.keep_new(x.numel)
        return _Array(x.numel, x.itemsize)

    def rope(self, x: _Array, d_head: int) -> _Array:
        """Keeps its table of complex numbers, made anew for each call."""
        if self.of.config.position_encoding == "none":
            return x
        self.keep_new(self.of.length * d_head)
        return _Array(x.numel, x.itemsize)

    def elementwise(self, x: _Array) -> _Array:
        """A sum or a multiple: nothing is kept."""
        return _Array(x.numel, x.itemsize)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of arrays that a forward pass keeps for its backward pass.

    Attributes:
        blocks: of each block.
        around: of the embedding, the last norm, the head and the loss.
        stream: of one residual stream, kept in place of blocks that are computed again.
        block_workspace: of a block's backward pass at its largest, beyond what was kept.
        loss_workspace: likewise of the loss, which holds several copies of the logits.
        logits: of the exponentials of the logits, which are kept until the loss is differentiated;
            where logits come in chunks, of the gradients that are kept in their place.
    """

    blocks: tuple[int, ...]
    around: int
    stream: int
    block_workspace: int
    loss_workspace: int
    logits: int

    def kept(self, recompute_blocks: int | None = None) -> int:
        """All that is there at the end of the forward pass."""
        if recompute_blocks is None:
            return sum(self.blocks) + self.around
        # Each stretch keeps what enters it; what leaves the last one is kept by what reads it.
        return self.around + self.stream * math.ceil(len(self.blocks) / recompute_blocks)


def saved_activations(
    config: TransformerConfig,
    n_sequences: int,
    *,
    itemsize: int = 4,
    casts_weights: bool = False,
    stream_itemsize: int = 4,
    attention: AttentionKind = "torch",
    device: DeviceKind = "cpu",
) -> Activations:
    """What a forward pass over `n_sequences` whole contexts keeps.

    Args:
        config: the model; its vocabulary must be known.
        n_sequences: the micro-batch.
        itemsize: bytes of a number in matrix products: 4 for float32, 2 for bfloat16.
        casts_weights: autocast copies each matrix from float32, and keeps the copy.
        stream_itemsize: of the residual stream, 2 where embeddings come in bfloat16.
        attention: how it is computed.
        device: a CPU widens short 16-bit attention.
    """
    of = _Pass(
        config=config,
        n_sequences=n_sequences,
        itemsize=itemsize,
        casts_weights=casts_weights,
        attention=attention,
        device=device,
    )
    n_tokens, d_model, vocab_size = of.n_tokens, config.d_model, config.resolved_vocab_size
    x = _Array(n_tokens * d_model, stream_itemsize)
    stream = x.n_bytes
    around = _Tape(of)
    around.keep_new(2 * n_tokens, 8)  # Token ids and targets, int64.
    if config.embedding_norm:
        x = around.norm(x, d_model)
    x0 = x
    blocks = []
    for layer in range(config.n_layers):
        tape = _Tape(of)
        if layer == 0:
            # What x0 scalars read is one array for all blocks.
            tape.keep(*[x0] * config.x0_scalars)
        x = _walk_block(tape, x, layer)
        blocks.append(tape.n_bytes)
    if has_final_norm(config):
        x = around.norm(x, d_model)
    if of.head_chunk < n_tokens:
        return Activations(
            blocks=tuple(blocks),
            around=around.n_bytes + _head_gradients(of, x),
            stream=stream,
            block_workspace=_block_workspace(of),
            loss_workspace=_chunk_workspace(of),
            logits=_head_gradients(of, x),
        )
    logits = around.linear(x, d_model, vocab_size)
    if config.softcap is not None:
        n_kept = 1 if config.softcap_form == "tanh" else 3
        around.keep_new(n_kept * logits.numel)
        logits = _Array(logits.numel, _WIDE)
    if config.z_loss:
        around.keep(logits)
    around.keep_new(logits.numel)
    around.keep_new(n_tokens)
    return Activations(
        blocks=tuple(blocks),
        around=around.n_bytes,
        stream=stream,
        block_workspace=_block_workspace(of),
        loss_workspace=_loss_workspace(of),
        logits=logits.numel * _WIDE,
    )


def _walk_block(tape: _Tape, x: _Array, layer: int) -> _Array:
    """The residual stream after a block, whose kept arrays go on the tape."""
    config = tape.of.config
    if config.residual_scalars:
        tape.keep(x)
        x = tape.elementwise(x)
    if config.x0_scalars:
        x = tape.elementwise(x)
    for branch in (_walk_attention, _walk_feed_forward):
        x = _walk_branch(tape, x, branch, layer)
    return x


def _walk_branch(tape: _Tape, x: _Array, branch: "_Branch", layer: int) -> _Array:
    """x + branch(norm x), or with the norms elsewhere."""
    config = tape.of.config
    has_norms, place = config.norm != "none", config.norm_position
    inside = tape.norm(x, config.d_model) if has_norms and place != "post" else x
    added = branch(tape, inside, layer)
    if has_norms and place == "peri":
        added = tape.norm(added, config.d_model)
    total = _Array(x.numel, x.itemsize)
    return tape.norm(total, config.d_model) if has_norms and place == "post" else total


def _walk_attention(tape: _Tape, x: _Array, layer: int) -> _Array:
    of, config = tape.of, tape.of.config
    d_model, d_head = config.d_model, config.resolved_d_head
    d_q, d_kv = config.n_heads * d_head, config.resolved_n_kv_heads * d_head
    q, k, v = (tape.linear(x, d_model, width) for width in (d_q, d_kv, d_kv))
    if config.qk_norm != "none":
        gain = config.qk_norm == "rms-gain"
        q, k = tape.norm(q, d_head, gain=gain), tape.norm(k, d_head, gain=gain)
    q, k = tape.rope(q, d_head), tape.rope(k, d_head)
    if d_kv != d_q and (of.attention == "reference" or of.device == "gpu"):
        # PyTorch's kernel for a CPU reads shared heads where they are.
        k, v = (_Array(q.numel, of.itemsize) for _ in range(2))
    if of.attention == "reference":
        heads = _walk_reference(tape, q, k, v)
    else:
        heads = _walk_fused(tape, q, k, v, config.windows[layer])
    return tape.linear(heads, d_q, d_model)


def _walk_fused(tape: _Tape, q: _Array, k: _Array, v: _Array, window: int | None) -> _Array:
    """PyTorch's kernels keep inputs, output and the logarithms of the softmax's sums."""
    of, config = tape.of, tape.of.config
    # On a CPU `rslm.attention` computes in float32.
    is_widened = of.device == "cpu" and of.itemsize == 2
    if is_widened:
        q, k, v = (_Array(x.numel, _WIDE) for x in (q, k, v))
    output = _Array(q.numel, q.itemsize)
    tape.keep(q, k, v, output)
    tape.keep_new(of.n_tokens * config.n_heads)
    if window is not None and window < of.length:
        tape.keep_new(of.length**2, q.itemsize)
    return _Array(q.numel, of.itemsize) if is_widened else output


def _walk_reference(tape: _Tape, q: _Array, k: _Array, v: _Array) -> _Array:
    """The formula keeps three arrays of a number for each pair of query and key."""
    of, config = tape.of, tape.of.config
    tape.keep(q, k, v)
    n_rows = of.n_tokens * config.n_heads
    n_scores = n_rows * of.length
    tape.keep_new(2 * n_scores)
    tape.keep_new(n_scores, of.itemsize)
    tape.keep_new(2 * n_rows)
    tape.keep_new(2 * of.length**2, 1)
    return _Array(q.numel, q.itemsize)


def _walk_feed_forward(tape: _Tape, x: _Array, layer: int) -> _Array:
    config = tape.of.config
    d_model, d_ff = config.d_model, config.resolved_d_ff
    hidden = tape.linear(x, d_model, d_ff)
    # GELU keeps its input, squared ReLU what it squares; SiLU is a product with a sigmoid, which
    # keeps both.
    tape.keep(hidden)
    if config.ffn in ("swiglu", "silu"):
        tape.keep_new(hidden.numel, hidden.itemsize)
    activated = tape.elementwise(hidden)
    if config.ffn == "swiglu":
        gate = tape.linear(x, d_model, d_ff)
        tape.keep(activated, gate)
        activated = tape.elementwise(activated)
    return tape.linear(activated, d_ff, d_model)


_Branch = Callable[[_Tape, _Array, int], _Array]


def _block_workspace(of: _Pass) -> int:
    """Gradients that a block's backward pass holds beside what the forward pass kept."""
    config = of.config
    feed_forward = 2 * of.n_tokens * config.resolved_d_ff
    d_q = config.n_heads * config.resolved_d_head
    attention = 2 * of.n_tokens * d_q
    workspace = max(feed_forward, attention) * of.itemsize
    if of.attention == "reference":
        # The softmax is differentiated in float32, its inputs' gradients are in both dtypes.
        n_copies = 3 * _WIDE + (2 * of.itemsize if of.itemsize < _WIDE else 0)
        scores = of.n_tokens * config.n_heads * of.length * n_copies
        workspace = max(workspace, attention * of.itemsize + scores)
    return workspace + 2 * of.n_tokens * config.d_model * _WIDE


def _loss_workspace(of: _Pass) -> int:
    """Copies of the logits beside the one that the loss keeps.

    Its gradient in float32, and then in the dtype of the logits; bent logits take more.
    """
    config = of.config
    n_logits = of.n_tokens * config.resolved_vocab_size
    if config.softcap is not None and config.softcap_form == "sqrt":
        return 3 * n_logits * _WIDE
    return n_logits * (_WIDE + (of.itemsize if of.itemsize < _WIDE else 0))


def _head_gradients(of: _Pass, x: _Array) -> int:
    """The gradients of the head and of its input, made in the forward pass."""
    # Matrices that come in half precision have gradients in it, too.
    itemsize = _WIDE if of.casts_weights else of.itemsize
    return x.n_bytes + of.config.resolved_vocab_size * of.config.d_model * itemsize


def _chunk_workspace(of: _Pass) -> int:
    """One chunk of logits, in float32 and in the dtype of products, and copies of the matrix.

    On a CPU without bfloat16 products less than this: there it is all float32.
    """
    config = of.config
    n_logits = of.head_chunk * config.resolved_vocab_size
    n_copies = 1 if config.softcap is None else 2
    workspace = n_logits * n_copies * _WIDE
    if of.itemsize < _WIDE:
        # The matrix, and what is added to its gradient.
        matrix = config.resolved_vocab_size * config.d_model * of.itemsize
        workspace += n_logits * of.itemsize + 2 * matrix
    return workspace
