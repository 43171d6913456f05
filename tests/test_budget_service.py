"""The budgeted training service: its rules, its answers, and that a killed one goes on."""

import contextlib
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rslm.architecture import TransformerConfig, train_flops_per_token
from rslm.cli import main
from rslm.errors import FormatError
from rslm.experiment.budget_client import BudgetClient
from rslm.experiment.ledger import Ledger, RepeatedError
from rslm.experiment.study import Outcome, PlannedRun
from rslm.token_file_writer import TokenizerRecord, write_token_file
from rslm.train_config import DataConfig, OptimizerConfig, TrainConfig

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

MODEL = TransformerConfig(vocab_size=64, context_length=8, d_model=16, n_layers=1, n_heads=2)
BASE = TrainConfig(
    out=Path("service"),
    data=DataConfig(train=Path("tokens")),
    model=MODEL,
    optimizer=OptimizerConfig(warmup_steps=0),
    n_steps=10,
    batch_size=4,
    device="cpu",
)
STEP_FLOPS = 4 * 8 * train_flops_per_token(MODEL)
BUDGET = 100 * STEP_FLOPS

# Behaves as `rslm train --resume --config FILE` does where nothing is learned: one row a step,
# slowly, the folder locked, a stop at SIGTERM; at a high rate the loss is infinite in step 3.
TRAINER = """
import fcntl, json, os, pathlib, signal, sys, time, tomllib
source = pathlib.Path(sys.argv[1])
options = tomllib.loads(source.read_text())
out = pathlib.Path(options["out"])
out.mkdir(exist_ok=True)
lock = os.open(out, os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
(out / "config.toml").write_text(source.read_text())
stops = []
signal.signal(signal.SIGTERM, lambda *_: stops.append(1))
path = out / "metrics.jsonl"
step = len(path.read_text().splitlines()) if path.exists() else 0
with open(path, "a", buffering=1) as metrics:
    while step < options["n_steps"]:
        step += 1
        n = step * 8 * options["batch_size"]
        row = {"step": step, "n_tokens": n, "train_flops": n * FLOPS, "loss": 3.0 + 1 / step}
        is_last = step == options["n_steps"]
        row |= {"elapsed_seconds": step / 10, "val_loss": 3.0 if is_last else None}
        print(json.dumps(row), file=metrics)
        if options["optimizer"]["learning_rate"] > 1 and step == 3:
            print("error: step 3: loss nan, grad_norm nan")
            raise SystemExit(1)
        time.sleep(0.02)
        if stops:
            raise SystemExit(75)
""".replace("FLOPS", str(train_flops_per_token(MODEL)))

SERVER = """
import sys
from rslm.experiment import child
child.train_command = lambda path: [sys.executable, sys.argv[1], str(path)]
from rslm.cli import main
sys.exit(main(sys.argv[2:]))
"""


def outcome(run: PlannedRun, folder: Path, *, n_steps: int, status: Any = "finished") -> Outcome:
    """What the queue says of a run that made so many steps."""
    path = folder / run.folder
    path.mkdir()
    (path / "config.toml").write_text("n_steps = 10\n")
    row = {"step": n_steps, "train_flops": n_steps * STEP_FLOPS, "loss": 3.5, "n_tokens": 1}
    (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return Outcome(run=run, path=path, status=status, seconds=1.0)


def test_the_maximum_is_reserved_and_the_actual_charged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, BASE, BUDGET)
    made = ledger.submit({"n_steps": 60})
    assert made["reserved_flops"] == 60 * STEP_FLOPS
    assert ledger.budget() == {
        "flop_budget": BUDGET,
        "charged_flops": 0,
        "reserved_flops": 60 * STEP_FLOPS,
        "left_flops": 40 * STEP_FLOPS,
    }
    with pytest.raises(ValueError, match="must be within what is left of the budget"):
        ledger.submit({"n_steps": 41})
    (planned,) = ledger.take_new()
    ledger.settle(outcome(planned, tmp_path, n_steps=25, status="diverged"))
    assert ledger.budget()["charged_flops"] == 25 * STEP_FLOPS
    assert ledger.budget()["left_flops"] == 75 * STEP_FLOPS
    assert ledger.run(made["id"])["status"] == "diverged"
    ledger.submit({"n_steps": 75})
    assert ledger.budget()["left_flops"] == 0
    with pytest.raises(ValueError, match="within what is left of the budget, 0 FLOPs"):
        ledger.submit({"n_steps": 1})


def test_a_run_is_made_once_however_it_is_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, BASE, BUDGET)
    made = ledger.submit({})
    for same in ({"n_steps": 10}, {"model": {"d_model": 16}}, {"model": {}}):
        with pytest.raises(RepeatedError) as caught:
            ledger.submit(same)
        assert caught.value.id == made["id"]
    assert ledger.submit({"seed": 1})["id"] != made["id"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"out": "/etc"}, "options must be of"),
        ({"data": {"train": "/etc/passwd"}}, "options must be of"),
        ({"device": "cuda"}, "options must be of"),
        ({"model": {"vocab_size": 2}}, "options must be of"),
        ({"model": {"context_length": 4096}}, "options must be of"),
        ({"modle": {}}, "unknown key modle"),
        ({"model": {"widht": 8}}, "unknown key model.widht"),
        ({"model": 3}, "model must be a table"),
        ({"n_steps": "10"}, "n_steps must be a whole number"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"n_steps": 10**400}, r"n_steps must be below 2\^63"),
        ({"model": {"n_layers": 10**9}}, "n_layers must be at most 1024"),
        ({"model": {"d_model": 2**20}}, "must fit into"),
    ],
)
def test_hostile_options_are_refused_and_cost_nothing(
    tmp_path: Path, options: dict[str, Any], fault: str
) -> None:
    ledger = Ledger(tmp_path, BASE, BUDGET)
    with pytest.raises((ValueError, OverflowError), match=fault):
        ledger.submit(options)
    assert ledger.budget()["left_flops"] == BUDGET
    assert ledger.runs() == []


def test_books_are_on_disk_before_the_answer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, BASE, BUDGET)
    made = ledger.submit({"seed": 1})
    ledger.predict({"flop_budget": 1e15, "n_parameters": 1e6, "n_tokens": 1e8, "loss": 2.5})
    again = Ledger(tmp_path, BASE)
    assert again.budget() == ledger.budget()
    assert [run.hash for run in again.take_new()] == [made["id"]]
    with pytest.raises(RepeatedError):
        again.submit({"seed": 1})
    with pytest.raises(RepeatedError, match="the prediction has been made"):
        again.predict({"flop_budget": 1e15, "n_parameters": 1e6, "n_tokens": 1e8, "loss": 2.4})
    with pytest.raises(ValueError, match="budget must stay those"):
        Ledger(tmp_path, BASE, 2 * BUDGET)
    with pytest.raises(ValueError, match="options must stay those"):
        Ledger(tmp_path, replace(BASE, batch_size=5), BUDGET)


def test_without_a_budget_or_with_damaged_books_nothing_begins(tmp_path: Path) -> None:
    for budget in (None, 0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="budget must be a positive number"):
            Ledger(tmp_path / "new", BASE, budget)
    assert not (tmp_path / "new").exists()
    for text in ("{", "[]", '{"runs": [1]}', '{"runs": [{"reserved_flops": -1}]}', '{"runs": []}x'):
        (tmp_path / "ledger.json").write_text(text)
        with pytest.raises(FormatError, match=r"ledger\.json must be the books"):
            Ledger(tmp_path, BASE, BUDGET)


def spoil_run(**changes: Any) -> Any:
    return lambda books: books["runs"][0].update(changes)


@pytest.mark.parametrize(
    "spoil",
    [
        *(spoil_run(**{key: []}) for key in ("id", "name", "folder", "status", "options")),
        *(spoil_run(labels=labels) for labels in (3, [1], {"seed": math.nan})),
        spoil_run(name="../a"),
        spoil_run(id="0" * 12),
        spoil_run(folder="../elsewhere"),
        spoil_run(status="waits"),
        spoil_run(reserved_flops=10**400),
        spoil_run(charged_flops=math.nan),
        lambda books: books["runs"].append(books["runs"][0]),
        lambda books: books.update(flop_budget=10**400),
        lambda books: books.update(flop_budget="1"),
        lambda books: books.update(base=[]),
        lambda books: books.update(prediction={"loss": "low"}),
        lambda books: books.update(prediction=[1]),
    ],
)
def test_books_of_wrong_types_are_refused(tmp_path: Path, spoil: Any) -> None:
    Ledger(tmp_path, BASE, BUDGET).submit({"seed": 1})
    path = tmp_path / "ledger.json"
    books = json.loads(path.read_text())
    spoil(books)
    path.write_text(json.dumps(books))
    with pytest.raises(FormatError, match=r"ledger\.json must be the books"):
        Ledger(tmp_path, BASE)


@pytest.mark.parametrize(
    "prediction",
    [{}, {"loss": 1}, {"flop_budget": 1, "n_parameters": 1, "n_tokens": 1, "loss": "low"},
     {"flop_budget": 1, "n_parameters": 1, "n_tokens": 1, "loss": True},
     {"flop_budget": 1, "n_parameters": 1, "n_tokens": 1, "loss": -1}],
)  # fmt: skip
def test_predictions_that_are_none_are_refused(tmp_path: Path, prediction: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Ledger(tmp_path, BASE, BUDGET).predict(prediction)


class Service:
    """`rslm scaling serve` as a process, with a trainer that learns nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "trainer.py").write_text(TRAINER)
        (folder / "server.py").write_text(SERVER)
        record = TokenizerRecord(
            name="count",
            vocab_size=64,
            canonical_json=b"{}",
            special_tokens={},
            end_of_text=None,
            token_byte_lengths=np.ones(64, np.uint32),
        )
        write_token_file(folder / "tokens", [np.arange(64)] * 4, tokenizer=record, rslm_version="0")

    def start(self, *more: str) -> BudgetClient:
        command = [
            *(sys.executable, str(self.folder / "server.py"), str(self.folder / "trainer.py")),
            *("scaling", "serve", "--port", "0", "--out", str(self.folder / "study")),
            *("--data.train", str(self.folder / "tokens"), "--device", "cpu"),
            *("--model.context-length", "8", "--model.d-model", "16", "--model.n-layers", "1"),
            *("--model.n-heads", "2", "--n-steps", "10", "--batch-size", "4"),
            *("--optimizer.warmup-steps", "0", *more),
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url, self.process.communicate()[1]
        self.port = int(url.rpartition(":")[2])
        return BudgetClient(url)

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    yield service
    with contextlib.suppress(ProcessLookupError):
        service.stop(signal.SIGKILL)


def test_service_trains_within_its_budget_and_outlives_kills(service: Service) -> None:
    client = service.start("--budget", str(BUDGET))
    assert client.budget()["left_flops"] == BUDGET
    made = client.submit({"n_steps": 20})
    with pytest.raises(ValueError, match="has the same options"):
        client.submit({"n_steps": 20})
    with pytest.raises(ValueError, match="within what is left of the budget"):
        client.submit({"n_steps": 81})
    with pytest.raises(ValueError, match="there is no such run"):
        client.run("0" * 12)
    done = client.wait(made["id"], seconds=60)
    assert done["status"] == "finished"
    assert done["charged_flops"] == done["reserved_flops"] == 20 * STEP_FLOPS
    assert done["step"] == 20
    assert done["val_loss"] == 3.0
    assert len(done["losses"]) == 20
    diverged = client.submit({"optimizer": {"learning_rate": 2.0}})
    ended = client.wait(diverged["id"], seconds=60)
    assert (ended["status"], ended["charged_flops"]) == ("diverged", 3 * STEP_FLOPS)

    # Killed in the middle of a run, it goes on where it stood.
    long = client.submit({"n_steps": 50, "seed": 3})
    while client.run(long["id"])["step"] < 5:
        time.sleep(0.05)
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    client = service.start()
    assert client.budget()["flop_budget"] == BUDGET
    assert client.wait(long["id"], seconds=60)["charged_flops"] == 50 * STEP_FLOPS
    rows = [json.loads(line) for line in metrics_of(service, long["id"]).splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert client.budget()["left_flops"] == 27 * STEP_FLOPS

    # Told to stop, it has its runs save, and they are gone on with as well.
    last = client.submit({"n_steps": 27, "seed": 4})
    while client.run(last["id"])["step"] < 3:
        time.sleep(0.05)
    assert service.stop(signal.SIGTERM) == 75
    client = service.start()
    assert client.wait(last["id"], seconds=60)["step"] == 27
    assert client.budget()["left_flops"] == 0
    assert len(client.runs()) == 4
    prediction = {"flop_budget": 1e15, "n_parameters": 1e6, "n_tokens": 1e8, "loss": 2.5}
    assert client.predict(**prediction) == prediction
    with pytest.raises(ValueError, match="the prediction has been made"):
        client.predict(**prediction)
    assert service.stop(signal.SIGINT) == 130


def test_service_ends_and_stays_alone_in_its_folder(tmp_path: Path) -> None:
    service = Service(tmp_path)
    try:
        client = service.start("--budget", str(BUDGET))
        first, books = service.process, (tmp_path / "study" / "ledger.json").stat()
        second = subprocess.run(
            [*map(str, first.args)], capture_output=True, text=True, timeout=60, check=False
        )
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr.startswith("error: another process uses the books of a service")
        assert (tmp_path / "study" / "ledger.json").stat() == books
        assert client.runs() == []

        head = "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += "Content-Length: 50\r\n\r\n{"
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as gone:
            gone.sendall(head.encode())
        with socket.create_connection(("127.0.0.1", service.port), timeout=30) as waits:
            waits.sendall(head.encode())
            assert client.runs() == []
            begun = time.monotonic()
            first.send_signal(signal.SIGTERM)
            _, errors = first.communicate(timeout=60)
            assert time.monotonic() - begun < 20
        assert first.returncode == 75
        assert "Traceback" not in errors
    finally:
        service.process.kill()
        service.process.wait()


def metrics_of(service: Service, id: str) -> str:
    (path,) = (service.folder / "study").glob(f"*-{id}/metrics.jsonl")
    return path.read_text()


def request(port: int, head: str, body: bytes = b"") -> tuple[int, bytes]:
    """The status and the body that raw bytes are answered with."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


def post(port: int, body: bytes, *, host: str = "127.0.0.1", kind: str = "application/json") -> int:
    head = (
        f"POST /runs HTTP/1.1\nHost: {host}\nContent-Type: {kind}\n"
        f"Content-Length: {len(body)}\nConnection: close"
    )
    return request(port, head, body)[0]


def test_hostile_requests_are_refused(tmp_path: Path) -> None:
    import uvicorn

    from rslm.experiment.budget_service import MAX_BODY_BYTES, make_app

    ledger = Ledger(tmp_path, BASE, BUDGET)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(make_app(ledger), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert post(port, b'{"seed": 1}') == 201
            assert post(port, b'{"seed": 1}') == 409
            assert post(port, b'{"seed": 2}', kind="text/plain") == 415
            assert post(port, b'{"seed": 2}', host="evil.example") == 400
            assert post(port, b"{") == 400
            assert post(port, b"[1]") == 400
            assert post(port, b'{"seed": NaN}') == 400
            assert post(port, b'{"optimizer": {"max_grad_norm": 1e400}, "n_steps": 5}') == 400
            assert post(port, b"[" * 50_000) == 400
            assert post(port, b'{"a":' * 9_000 + b"1" + b"}" * 9_000) == 400
            assert post(port, b'{"n_steps": 1' + b"0" * 5_000 + b"}") == 400
            assert post(port, b'{"\xff": 1}') == 400
            assert post(port, b'{"\\ud800": 1}') == 400
            assert post(port, b'{"optimizer": {"groups": ["\\ud800: beta1=0.5"]}}') == 400
            assert post(port, b" " * (MAX_BODY_BYTES + 1)) == 413
            head = "GET /runs/..%2f..%2fetc HTTP/1.1\nHost: localhost\nConnection: close"
            assert request(port, head)[0] == 404
            head = "GET /runs HTTP/1.1\nHost: localhost\nConnection: close"
            assert request(port, head)[0] == 200
            for line, host, status, fault in (
                ("GET /none", "localhost", 404, "there is no '/none'"),
                ("DELETE /runs/1", "localhost", 405, "'/runs/1' does not take DELETE"),
                ("GET /runs", "evil.example", 400, "host must be 127.0.0.1 or localhost"),
            ):
                head = f"{line} HTTP/1.1\nHost: {host}\nConnection: close"
                answer = request(port, head)
                assert answer[0] == status
                assert fault in json.loads(answer[1])["error"]
            assert len(ledger.runs()) == 1
        finally:
            server.should_exit = True
            thread.join()


def test_client_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="url must begin with http://"):
        BudgetClient("file:///etc/passwd")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        BudgetClient(f"http://127.0.0.1:{port}").budget()


def test_serve_refuses_what_it_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    assert main(["scaling", "serve", "--budget", "1e12"]) == 2
    assert "out must be given" in capsys.readouterr().err
    assert main(["scaling", "serve", "--port", "-1"]) == 2
    assert "port must be 0 to 65535" in capsys.readouterr().err
    out = str(tmp_path / "study")
    arguments = ["--out", out, "--data.train", str(tmp_path / "none"), "--budget", "1e12"]
    assert main(["scaling", "serve", *arguments]) == 2
    assert list(tmp_path.iterdir()) == []
