"""`rslm chat`."""

import contextlib
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from rslm.commands.sample import Speed, make_engine
from rslm.commands.tokenizer import File
from rslm.process import harmless
from rslm.terminal import Switch, note

if TYPE_CHECKING:
    from rslm.chat import ChatFormat, Message
    from rslm.infer.engine import Engine
    from rslm.infer.parameters import SamplingParameters

HELP = """\
/regenerate       answer the last message anew
/system [TEXT]    begin anew under a system message, or none
/reset            begin anew
/quit             leave; so do Ctrl-D, and Ctrl-C when no answer is being written
A line that ends with \\ goes on in the next one; // begins a message with a slash."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Talk to a model in the terminal.

    Each line of stdin is a message, and answers go to stdout, so that it works in a pipe as well.
    /help lists what else can be typed. Ctrl-C stops an answer.
    """

    run: File
    """Run or model folder."""
    system: str | None = None
    """System message."""
    max_new_tokens: int | None = None
    """Tokens of an answer at most; by default what the context has room for."""
    temperature: float = 0.8
    """Below 1 bolder where the model is sure; 0 takes the likeliest token each time."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only."""
    top_p: float | None = None
    """Draw from the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Draw from tokens of at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, what was said is less likely to be said again."""
    seed: int | None = None
    """Seed of the first answer, from which those of the others count on; a new one unless given."""
    exact: Switch = False
    """Draw by the log-probabilities of the full forward, bit for bit."""
    int8: Switch = False
    """Keep the weights of matrices in 8 bits."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU when there is one."""


def chat(options: ChatOptions) -> None:
    """Reads messages and prints answers until stdin ends."""
    from rslm.infer.load import load_chat_format, load_run

    parameters = _parameters(options)
    model, tokenizer = load_run(options.run, device=options.device)
    chat_format = load_chat_format(options.run, tokenizer)
    engine = make_engine(model, tokenizer, exact=options.exact, int8=options.int8)
    if chat_format.note is not None:
        note(f"({chat_format.note})")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    talk = Conversation(
        engine,
        chat_format,
        parameters,
        max_new_tokens=options.max_new_tokens,
        context_length=model.config.context_length,
        seed=seed,
        system=options.system,
    )
    if sys.stdin.isatty():
        note("(/help lists what can be typed)")
    for line in _lines():
        if not obey(talk, line):
            return


def _parameters(options: ChatOptions) -> "SamplingParameters":
    from rslm.infer.parameters import SamplingParameters

    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {options.max_new_tokens}")
    return SamplingParameters(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )


def _lines() -> Iterator[str]:
    """Messages and commands, to the end of stdin."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - `input` edits lines once it is there
    held: list[str] = []
    while (line := _line("" if not is_terminal else "... " if held else "> ")) is not None:
        if line.endswith("\\"):
            held.append(line[:-1])
            continue
        yield "\n".join([*held, line])
        held.clear()
    if held:
        yield "\n".join(held)


def _line(prompt: str) -> str | None:
    """A line of stdin, None at its end; on a terminal it is asked for, and can be edited."""
    if prompt and sys.stdout.isatty():
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def obey(talk: "Conversation", line: str) -> bool:
    """Does what a line says; False where it is to leave."""
    command, _, rest = line.strip().partition(" ")
    if not command:
        return True
    if not command.startswith("/") or command.startswith("//"):
        talk.say(line[1:] if line.startswith("//") else line)
    elif command in ("/quit", "/exit"):
        return False
    elif command == "/reset":
        talk.reset()
    elif command == "/system":
        talk.reset()
        talk.system = rest.strip() or None
    elif command == "/regenerate":
        talk.regenerate()
    elif command == "/help":
        note(HELP)
    else:
        note(f"(unknown command {command[:40]}; /help lists those there are)")
    return True


@dataclass
class Conversation:
    """What has been said, and who answers."""

    engine: "Engine"
    chat_format: "ChatFormat"
    parameters: "SamplingParameters"
    max_new_tokens: int | None
    context_length: int
    seed: int
    system: str | None = None
    messages: "list[Message]" = field(default_factory=list)

    def reset(self) -> None:
        """Forgets what was said."""
        self.messages.clear()

    def say(self, content: str) -> None:
        """Adds a message and prints the answer to it."""
        self.messages.append({"role": "user", "content": content})
        if not self._answer():
            self.messages.pop()

    def regenerate(self) -> None:
        """Answers the last message anew, by the next seed."""
        if not self.messages:
            note("(there is no answer yet)")
            return
        last = self.messages.pop() if self.messages[-1]["role"] == "assistant" else None
        if not self._answer() and last is not None:
            self.messages.append(last)

    def _answer(self) -> bool:
        """Prints an answer and remembers it; False where there is no room for one."""
        prompt = self._prompt()
        if prompt is None:
            note(
                f"(the message is too long for the model's context of {self.context_length} tokens)"
            )
            return False
        speed, pieces = Speed(), []
        is_terminal = sys.stdout.isatty()
        with _interrupts_noted() as is_interrupted:
            chunks = self.engine.stream(prompt, self._asked(len(prompt)))
            for chunk in speed.watch(chunks):
                pieces.append(chunk.text)
                sys.stdout.write(harmless(chunk.text) if is_terminal else chunk.text)
                sys.stdout.flush()
                if is_interrupted():
                    break
            # Cancels what still runs.
            chunks.close()  # type: ignore[attr-defined]
        sys.stdout.write("\n")
        sys.stdout.flush()
        speed.tell("stopped" if is_interrupted() else f"seed {self.seed}")
        self.seed = self.seed + 1 if self.seed < 2**64 - 1 else 0
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        return True

    def _asked(self, n_prompt: int) -> "SamplingParameters":
        from dataclasses import replace

        room = self.context_length - n_prompt
        n_new = room if self.max_new_tokens is None else min(room, self.max_new_tokens)
        return replace(
            self.parameters,
            max_new_tokens=n_new,
            stop=self.chat_format.stop,
            stop_token_ids=self.chat_format.stop_token_ids,
            seed=self.seed,
        )

    def _prompt(self) -> list[int] | None:
        """The ids of what was said; turns at its begin that leave no room for an answer go.

        None where even the last message leaves none.
        """
        head: list[Message] = []
        if self.system is not None:
            head = [{"role": "system", "content": self.system}]
        # An answer should have some room, not just a token's.
        most = self.context_length - min(64, self.context_length // 4)
        n_dropped = 0
        while True:
            prompt = self.chat_format.prompt([*head, *self.messages[n_dropped:]])
            n_left = len(self.messages) - n_dropped
            if len(prompt) <= most or (n_left == 1 and len(prompt) < self.context_length):
                break
            if n_left == 1:
                return None
            # A turn is a message and its answer.
            n_dropped += min(2, n_left - 1)
        if n_dropped:
            note(f"(the context is full: the first {n_dropped} messages are forgotten)")
            del self.messages[:n_dropped]
        return prompt


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Takes Ctrl-C as a request to stop; a second one is an interrupt again.

    An exception in the middle of a step would leave the engine half-way.
    """
    received = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, receive)
    try:
        yield lambda: received
    finally:
        signal.signal(signal.SIGINT, before)
