"""The token files: their hashes, and the tokenizer that made them."""

from collections.abc import Iterator
from pathlib import Path

from rslm.doctor.check import Check
from rslm.errors import FormatError
from rslm.token_file import TokenFile
from rslm.tokenizer import Tokenizer
from rslm.train_config import TrainConfig


def check_token_files(
    config: TrainConfig, tokenizer: Path | None, *, reads_all: bool
) -> Iterator[Check]:
    """Sizes and hashes of the token files, and whether one tokenizer made them all."""
    paths = [config.data.train, *config.data.mixed_in]
    paths += [config.data.valid] if config.data.valid is not None else []
    opened = []
    for path in paths:
        name = f"data {path}"
        try:
            token_file = TokenFile.open(path, verify=reads_all)
        except (OSError, FormatError) as error:
            advice = "make it anew with rslm tokenizer encode, or copy it again"
            yield Check(name=name, status="fail", found=_line(error), advice=advice)
            continue
        opened.append(token_file)
        read = "hashes hold" if reads_all else "hashes not read"
        yield Check(name=name, status="ok", found=f"{len(token_file):,} tokens, {read}")
    if opened:
        yield from _check_fingerprints(config, opened, tokenizer)


def _check_fingerprints(
    config: TrainConfig, opened: list[TokenFile], tokenizer: Path | None
) -> Iterator[Check]:
    """Whether the files' tokenizer is one, is the one inside them, and fits the model."""
    stated = {token_file.tokenizer_sha256 for token_file in opened}
    name, first = "tokenizer", opened[0]
    if len(stated) > 1:
        found = f"{len(stated)} different tokenizers made the token files"
        advice = "encode all of them with one tokenizer"
        yield Check(name=name, status="fail", found=found, advice=advice)
        return
    mark = first.tokenizer_sha256
    if mark is None or first.tokenizer_json is None:
        advice = "encode with rslm tokenizer encode, which keeps the tokenizer in the file"
        yield Check(name=name, status="warn", found="a plain llm.c file names none", advice=advice)
        return
    inside = Tokenizer.from_json(first.tokenizer_json)
    marks = {"in the token file": inside.sha256}
    if tokenizer is not None:
        marks[str(tokenizer)] = Tokenizer.load(tokenizer).sha256
    for place, own in marks.items():
        if own != mark:
            found = f"{place}: {own[:16]}, the token file was made by {mark[:16]}"
            advice = "use the tokenizer that made the data, or encode it again"
            yield Check(name=name, status="fail", found=found, advice=advice)
            return
    size, wanted = inside.vocab_size, config.model.vocab_size
    if wanted is not None and wanted < size:
        advice = f"--model.vocab-size {size}"
        found = f"{size:,} ids, the model has {wanted:,}"
        yield Check(name=name, status="fail", found=found, advice=advice)
        return
    yield Check(name=name, status="ok", found=f"{size:,} ids, fingerprint {mark[:16]}")


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())
