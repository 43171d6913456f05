"""The data of a run: its token files, how they are mixed, and the tokenizer inside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from rslm.architecture import TransformerConfig
from rslm.batches import (
    Mixture,
    Packed,
    SampleIndices,
    Source,
    count_samples,
    mixing_slots,
    token_files_of,
)
from rslm.errors import FormatError
from rslm.packing import PackingPlan, open_plan, packing_stats, require_documents
from rslm.run_folder import Row
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer
from rslm.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Data:
    """The opened data of a run; the tokenizer is that of the training file, where it has one.

    `source` is what batches are drawn from: `train`, or a mixture of which it is the first file,
    with its documents packed or told apart where the options ask for it.
    """

    train: TokenFile
    source: Source
    valid: TokenFile | None
    tokenizer: Tokenizer | None

    @property
    def train_files(self) -> tuple[TokenFile, ...]:
        """All files to train on."""
        return token_files_of(self.source)

    @property
    def files(self) -> tuple[TokenFile, ...]:
        """All files, to train and to validate on."""
        return (*self.train_files, *(() if self.valid is None else (self.valid,)))

    @property
    def token_byte_lengths(self) -> npt.NDArray[np.uint32] | None:
        """Bytes of each token, special ones 0."""
        return None if self.tokenizer is None else self.tokenizer.token_byte_lengths

    @property
    def fingerprints(self) -> Row:
        """What identifies the data, wherever it lies."""
        valid = None if self.valid is None else self.valid.fingerprint
        mixed_in = [token_file.fingerprint for token_file in self.train_files[1:]]
        known: Row = {"train": self.train.fingerprint, "valid": valid}
        return known | {"mixed_in": mixed_in} if mixed_in else known


def open_data(config: TrainConfig) -> Data:
    """Opens the token files and the tokenizer inside the first.

    Raises:
        FormatError: a file is damaged, or they were made by different tokenizers.
        ValueError: a training file is shorter than one window, a weight is out of range, two
            files hold the same, or a file does not tell its documents apart and the options
            need to know them.
    """
    train_files = tuple(map(TokenFile.open, (config.data.train, *config.data.mixed_in)))
    train_file = train_files[0]
    for token_file in train_files:
        count_samples(len(token_file), config.model.context_length, token_file.path)
        if token_file.tokenizer_sha256 != train_file.tokenizer_sha256:
            raise FormatError(
                f"{token_file.path} was made by another tokenizer than {config.data.train}"
            )
    source: TokenFile | Mixture = train_file
    if len(train_files) > 1:
        slots = slots_of(train_files, config.data.weights or list(map(len, train_files)), config)
        source = Mixture(token_files=train_files, slots=slots)
    valid_file = None if config.data.valid is None else TokenFile.open(config.data.valid)
    if valid_file is not None and len(valid_file) < 2:
        raise ValueError(f"{config.data.valid} must hold at least 2 tokens, got {len(valid_file)}")
    if valid_file is not None and valid_file.tokenizer_sha256 != train_file.tokenizer_sha256:
        raise FormatError(
            f"{config.data.valid} was made by another tokenizer than {config.data.train}"
        )
    if config.data.packing != "chunk":
        for token_file in train_files:
            require_documents(token_file, f"data.packing {config.data.packing}")
    if config.data.mask_documents:
        for token_file in (*train_files, *([] if valid_file is None else [valid_file])):
            require_documents(token_file, "data.mask_documents")
    record = train_file.tokenizer_json
    tokenizer = None if record is None else Tokenizer.from_json(record)
    data = Data(train=train_file, source=source, valid=valid_file, tokenizer=tokenizer)
    _require_different(data)
    return data


def _require_different(data: Data) -> None:
    """Refuses content twice: it would be weighed twice, or validate on what was trained on."""
    if len(data.files) == 1:
        return  # A plain llm.c file is read whole for its fingerprint.
    seen: dict[str, TokenFile] = {}
    for token_file in data.files:
        same = seen.setdefault(token_file.fingerprint, token_file)
        if same is not token_file:
            raise ValueError(
                f"the files to train and to validate on must hold different tokens, and "
                f"{token_file.path} holds what {same.path} does"
            )


def slots_of(
    files: tuple[TokenFile, ...], weights: Sequence[float], config: TrainConfig
) -> SampleIndices:
    """The slots of a mixture of these files, which messages name."""
    return mixing_slots(weights, config.seed, [token_file.path for token_file in files])


def pack_data(data: Data, config: TrainConfig) -> Data:
    """The data with its documents packed and told apart as the options say.

    The plan of a file is read from beside it, or made and kept there. Rows with much padding hold
    few targets, so a mixture's slots, which are rows, are dealt out anew: weights are shares of
    the targets, and unless given the number of a file's targets.

    Raises:
        FormatError: a plan or an index of documents is damaged.
        ValueError: the weight of a file is too small for one slot.
    """
    options = config.data
    if options.packing == "chunk" and not options.mask_documents:
        return data
    assert not isinstance(data.source, Packed), "data must be packed once"
    plans: tuple[PackingPlan, ...] = ()
    if options.packing != "chunk":
        length = config.model.context_length
        plans = tuple(open_plan(file, length, options.packing) for file in data.train_files)
    unpacked = data.source
    if plans and isinstance(unpacked, Mixture):
        files, weights = data.train_files, options.weights
        # So many rows of a file make its share of the targets.
        rows = [
            plan.n_rows if not weights else weights[i] * plan.n_rows / plan.n_all_targets
            for i, plan in enumerate(plans)
        ]
        unpacked = replace(unpacked, slots=slots_of(files, rows, config))
    source = Packed(
        source=unpacked,
        plans=plans,
        mask_documents=options.mask_documents,
        restart_positions=options.restart_positions,
    )
    return replace(data, source=source)


def packing_notes(data: Data) -> list[str]:
    """A line on each file whose documents are packed: what its rows hold and what is lost."""
    if not isinstance(data.source, Packed):
        return []
    notes = []
    for token_file, plan in zip(data.train_files, data.source.plans, strict=False):
        stats = packing_stats(token_file, plan.context_length, plan)
        cut = f"{stats.n_cut_documents:,} of {stats.n_documents:,} documents cut"
        dropped = f"{stats.n_dropped:,} tokens dropped ({stats.n_dropped / len(token_file):.2%})"
        notes.append(
            f"packing {plan.policy}: {token_file.path}: {stats.n_rows:,} rows, "
            f"{stats.utilization:.2%} full, {cut}, {dropped}"
        )
    return notes


def resolve_model(model: TransformerConfig, data: Data) -> TransformerConfig:
    """The model's config with the vocabulary of the data.

    Raises:
        ValueError: the data has ids that the model would not have, or does not say how many.
    """
    stated = data.train.vocab_size
    if model.vocab_size is None and stated is None:
        raise ValueError("model.vocab_size must be given: the token file does not state its own")
    if model.vocab_size is not None and stated is not None and model.vocab_size < stated:
        raise ValueError(
            f"model.vocab_size must be at least {stated}, that of the token file, "
            f"got {model.vocab_size}"
        )
    # A plain llm.c file promises nothing about its ids; all files are such, or none is.
    for token_file in data.files if stated is None else ():
        for start in range(0, len(token_file), 1 << 24):
            largest = int(token_file[start : start + (1 << 24)].max())
            if largest >= (model.vocab_size or 0):
                raise ValueError(
                    f"token ids must be below model.vocab_size {model.vocab_size}, "
                    f"got {largest} in {token_file.path}"
                )
    return replace(model, vocab_size=model.vocab_size or stated)
