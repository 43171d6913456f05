"""The whole story through the command line: text, tokenizer, token files, model, sample."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

MODEL = "--model.context-length 32 --model.d-model 32 --model.n-layers 2 --model.n-heads 2"


def rslm(command: str, folder: Path, stdin: str = "") -> str:
    """Standard output of a command that must succeed, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "rslm", *shlex.split(command)],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_text_becomes_a_model_that_has_learnt_it(tmp_path: Path, stdlib_text: str) -> None:
    (tmp_path / "train.txt").write_text(stdlib_text[:300_000])
    (tmp_path / "valid.txt").write_text(stdlib_text[300_000:330_000])
    rslm("tokenizer train train.txt --vocab-size 512 --out tok.json", tmp_path)
    rslm("tokenizer encode tok.json train.txt --out train", tmp_path)
    rslm("tokenizer encode tok.json valid.txt --out valid", tmp_path)
    rslm("tokens verify train --tokenizer tok.json", tmp_path)
    ids = rslm("tokenizer encode tok.json", tmp_path, "import sys\n")
    assert rslm("tokenizer decode tok.json", tmp_path, ids) == "import sys\n"

    optimizer = "--optimizer.learning-rate 1e-2 --optimizer.warmup-steps 10"
    rslm(
        "train --out run --data.train train --data.valid valid --n-steps 120 --batch-size 8 "
        f"--validate-every 60 --device cpu --n-threads 1 {MODEL} {optimizer}",
        tmp_path,
    )
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in metrics]
    scores = [row["val_bits_per_byte"] for row in rows if "val_bits_per_byte" in row]
    uniform = 9 * len(ids.split()) / len("import sys\n")
    assert scores[-1] < scores[0] < uniform
    text = rslm("sample run --prompt 'import ' --max-new-tokens 20 --seed 3", tmp_path)
    assert text.startswith("import ")
    assert text == rslm("sample run --prompt 'import ' --max-new-tokens 20 --seed 3", tmp_path)


def test_training_straight_from_text_equals_training_from_token_files(
    tmp_path: Path, stdlib_text: str
) -> None:
    (tmp_path / "a.txt").write_text(stdlib_text[:50_000])
    (tmp_path / "b.txt").write_text(stdlib_text[50_000:90_000])
    flags = (
        f"{MODEL} --n-steps 3 --batch-size 2 --optimizer.warmup-steps 1 --device cpu --n-threads 1"
    )
    rslm(
        f"train --out direct --text a.txt b.txt --valid-text b.txt --vocab-size 300 {flags}",
        tmp_path,
    )
    rslm("tokenizer train a.txt b.txt --vocab-size 300 --out tok.json", tmp_path)
    rslm("tokenizer encode tok.json a.txt b.txt --out train", tmp_path)
    rslm("tokenizer encode tok.json b.txt --out valid", tmp_path)
    rslm(f"train --out steps --data.train train --data.valid valid {flags}", tmp_path)
    weights = [
        (tmp_path / run / "checkpoints" / "step_00000003" / "model.safetensors").read_bytes()
        for run in ("direct", "steps")
    ]
    assert weights[0] == weights[1]
    tokenizers = [tmp_path / "tok.json", tmp_path / "direct" / "tokenizer.json"]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
