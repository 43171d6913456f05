"""datatrove's side of `web_rules.py`, run by the interpreter that has it: JSON lines in and out.

Each request is `{"task": name, "texts": [...]}`; the answer holds `seconds` of CPU time and what
the task found. Importing and loading the word splitter are not timed.
"""

import contextlib
import json
import logging
import os
import sys
import time
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

with contextlib.redirect_stdout(sys.stderr):
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.utils.text import split_into_words

logging.disable()
FILTERS = {
    "repetition": GopherRepetitionFilter(),
    "quality": GopherQualityFilter(),
    "c4": C4QualityFilter(filter_no_terminal_punct=False),
    "fineweb": FineWebQualityFilter(),
}


def judge(name: str, document: Document) -> str:
    """The filter's reason, "" if it keeps the document."""
    try:
        verdict = FILTERS[name].filter(document)
    except ZeroDivisionError:  # A page without a word, which datatrove counts as failed.
        return "error"
    return "" if verdict is True else verdict[1]


def run(task: str, texts: list[str]) -> list[Any]:
    """What the task gives for each text."""
    if task == "tokens":
        return [split_into_words(text) for text in texts]
    if task == "pii":
        mask = PIIFormatter().format
        return [mask(text) for text in texts]
    documents = [Document(text=text, id="") for text in texts]
    if task == "all":
        found = []
        for document in documents:
            reasons = (judge(name, document) for name in FILTERS)
            reason = next(filter(None, reasons), "")
            found.append([reason, "" if reason else document.text])
        return found
    return [[judge(task, document), document.text] for document in documents]


def main() -> None:
    """Answers until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    run("all", ["To be or not to be, that is the question of them all. " * 9])
    for line in sys.stdin:
        request = json.loads(line)
        start = time.process_time()
        found = run(request["task"], request["texts"])
        seconds = time.process_time() - start
        answers.write(json.dumps({"seconds": seconds, "found": found}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
