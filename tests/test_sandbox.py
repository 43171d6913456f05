"""The sandbox: programs that must run, attacks that must not get through, verdicts that hold.

Where the kernel does not give the walls, the tests that need them skip and say what is missing,
and the refusal itself is what is tested.
"""

import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rslm.evaluate import sandbox
from rslm.evaluate.sandbox import Program, SandboxResult, check_sandbox, run_all, run_untrusted

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

# The tests' own bound against a machine that is busy; none waits that long when all is well.
LONG = 120.0


@pytest.fixture(scope="module")
def walls() -> None:
    try:
        check_sandbox()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def victim(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file where code may read, of root or whoever runs the tests, and writable for all."""
    path = tmp_path_factory.mktemp("shown") / "victim"
    path.write_text("as it was")
    path.chmod(0o666)
    before = path.stat()
    start = sandbox._START.replace("main()\n", f"sys.path.append({str(path.parent)!r})\nmain()\n")
    monkeypatch.setattr(sandbox, "_START", start)
    yield
    after = path.stat()
    assert path.read_text() == "as it was"
    assert (before.st_mode, before.st_mtime_ns, before.st_uid) == (
        after.st_mode,
        after.st_mtime_ns,
        after.st_uid,
    )
    assert [path] == list(path.parent.iterdir())


def run(code: str, test: str | None = None, **limits: object) -> SandboxResult:
    limits = {"timeout_seconds": LONG, **limits}
    return run_untrusted(textwrap.dedent(code), test=test, **limits)  # type: ignore[arg-type]


def denial(attack: str, errors: str = "OSError") -> str:
    """A program that passes only if the attack raises one of the errors."""
    return (
        f"import ctypes, os, sys\ntry:\n{textwrap.indent(textwrap.dedent(attack), '    ')}\n"
        f"except ({errors}) as error:\n    print('denied', error)\n"
        "else:\n    raise AssertionError('the attack got through')\n"
    )


# ---- what must work


def test_program_and_its_output(walls: None) -> None:
    result = run("import sys; print('out é'); print('err', file=sys.stderr)")
    assert (result.status, result.stdout, result.stderr) == ("passed", "out é\n", "err\n")
    assert result.missing == ()
    assert 0 < result.seconds < LONG


def test_standard_library_is_there(walls: None) -> None:
    result = run(
        """
        import asyncio, collections, ctypes, dataclasses, datetime, decimal, fractions, functools
        import hashlib, heapq, itertools, json, math, operator, random, re, statistics, string
        import typing, unicodedata, zlib
        @dataclasses.dataclass
        class Point:
            x: "int"
        assert hashlib.sha256(b"").hexdigest()[:4] == "e3b0"
        assert Point(1) == Point(1) and random.random() < 1
        assert sum(range(10**5)) and math.comb(10, 3) == 120 and re.fullmatch("a+", "aaa")
        """
    )
    assert result.status == "passed", result.stderr


def test_least_memory_is_enough_to_start(walls: None) -> None:
    assert run("print(1)", memory_bytes=sandbox.MIN_MEMORY_BYTES).stdout == "1\n"


def test_private_directory_can_be_used(walls: None) -> None:
    result = run(
        """
        import os, shutil, tempfile
        open("a", "w").write("text")
        os.mkdir("b"); shutil.copyfile("a", "b/c"); os.rename("b/c", "d")
        with tempfile.NamedTemporaryFile("w+") as file:
            file.write("x")
        print(*map(os.path.exists, "abcd"), os.getcwd(), os.path.expanduser("~"))
        """
    )
    assert result.stdout == "True True False True /tmp /tmp\n", result.stderr


def test_test_calls_functions_with_plain_data(walls: None) -> None:
    result = run(
        """
        import collections
        def echo(*arguments, **keywords):
            return arguments, keywords
        def count(text):
            return collections.Counter(text)
        """,
        """
value = [1, -2.5, "é", b"x", None, True, (1, [2]), {3}, {(1,): "a"}, 10**5000, 1j, float("inf")]
assert program.echo(value, key=value) == ((value,), {"key": value})
assert type(program.echo(True)[0][0]) is bool and str(program.echo(-0.0)[0][0]) == "-0.0"
assert program.count("aab") == {"a": 2, "b": 1}
import math
assert math.isnan(program.echo(math.nan)[0][0])
""",
    )
    assert result.status == "passed", result.stderr


def test_exceptions_reach_the_test_by_name(walls: None) -> None:
    result = run(
        """
        class Own(Exception): pass
        def fail(kind):
            raise {"value": ValueError, "own": Own, "decode": lambda m: UnicodeDecodeError(
                "utf-8", b"", 0, 1, m)}[kind](kind)
        """,
        """
for kind, raised in {"value": ValueError, "own": RuntimeError, "decode": RuntimeError}.items():
    try:
        program.fail(kind)
    except raised as error:
        assert kind in str(error)
    else:
        raise AssertionError
try:
    program.missing()
except AttributeError:
    pass
""",
    )
    assert result.status == "passed", result.stderr


def test_hashes_of_text_are_the_same_in_every_run(walls: None) -> None:
    assert len({run("print(hash('text'), list({'a', 'b', 'c'}))").stdout for _ in range(3)}) == 1


def test_run_all_keeps_the_order(walls: None) -> None:
    programs = [Program(f"def f(): return {i}", "assert program.f() < 2") for i in range(4)]
    results = run_all(programs, n_workers=2, timeout_seconds=LONG)
    assert [result.status for result in results] == ["passed", "passed", "failed", "failed"]


# ---- statuses


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise ValueError('why')", "failed"),
        ("this is no Python", "failed"),
        ("x = '\\ud800'\nprint(1/0)", "failed"),
        ("import sys; sys.exit(0)", "failed"),
        ("raise SystemExit", "failed"),
        ("raise KeyboardInterrupt", "failed"),
        ("import os; os._exit(0)", "failed"),
        ("bytearray(10 << 30)", "memory"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
        ("raise MemoryError", "memory"),
        ("import ctypes; ctypes.string_at(8)", "killed"),
        ("import os; os.abort()", "killed"),
    ],
)
def test_status_of_an_end(walls: None, code: str, status: str) -> None:
    result = run(code, memory_bytes=256 << 20)
    assert result.status == status, result.stderr
    assert result.stderr or status == "memory"


def test_traceback_is_shown(walls: None) -> None:
    assert "ZeroDivisionError" in run("1/0").stderr
    assert "AssertionError: two" in run("", "assert False, 'two'").stderr


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(1000)",
        "while True: pass",
        "import signal; signal.pause()",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os, select; r, w = os.pipe(); select.select([r], [], [])",
        "10 ** 10 ** 10",
        "import re; re.match('(a+)+b', 'a' * 100)",
    ],
)
def test_time_is_bounded(walls: None, code: str) -> None:
    start = time.monotonic()
    result = run(code, timeout_seconds=0.2)
    assert result.status == "timeout"
    assert time.monotonic() - start < LONG


def test_time_of_the_test_is_bounded(walls: None) -> None:
    assert (
        run("def f():\n    while True: pass", "program.f()", timeout_seconds=0.2).status
        == "timeout"
    )
    # One that swallows everything gets no further than the first call that found no time left.
    greedy = "for _ in range(100):\n    try: program.f()\n    except BaseException: pass"
    assert run("def f():\n    while True: pass", greedy, timeout_seconds=0.2).status == "timeout"


def test_time_of_a_test_that_calls_nothing_is_bounded(walls: None, monkeypatch) -> None:
    marker = mark_processes(monkeypatch)
    monkeypatch.setattr(sandbox, "_END_SECONDS", 0.1)
    assert run("", "while True: pass", timeout_seconds=0.1).status == "timeout"
    await_no_process(marker)


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 1000)",
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        "import os\nwhile True: os.write(1, bytes(1 << 16))",
        "print('x' * 5001)",
    ],
)
def test_output_is_bounded(walls: None, code: str) -> None:
    result = run(code, output_bytes=5000)
    assert result.status == "output"
    assert len(result.stdout) <= 5000
    assert len(result.stderr) <= 5000


def test_output_of_the_bound_passes(walls: None) -> None:
    assert run("print('x' * 4999)", output_bytes=5000).status == "passed"


@pytest.mark.parametrize("bad", [{"timeout_seconds": 0}, {"memory_bytes": 1}, {"output_bytes": -1}])
def test_limits_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be in"):
        run("", **bad)


# ---- attacks

ATTACKS = {
    "tcp": "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
    "tcp server": "import socket; socket.create_server(('127.0.0.1', 0))",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "unix": "import socket; socket.socket(socket.AF_UNIX)",
    "raw": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK)",
    "passwd": "open('/etc/passwd').read()",
    "root": "os.listdir('/')",
    "home": "open(os.path.join('/root', '.profile'), 'a')",
    "new file": "open(sys.path[-1] + '/new', 'w')",
    "its own code": "open(sys.path[-1] + '/victim', 'a')",
    "truncate": "os.truncate(sys.path[-1] + '/victim', 0)",
    "mode": "os.chmod(sys.path[-1] + '/victim', 0o777)",
    "owner": "os.chown(sys.path[-1] + '/victim', 0, 0)",
    "times": "os.utime(sys.path[-1] + '/victim')",
    "attribute": "os.setxattr(sys.path[-1] + '/victim', 'user.x', b'')",
    "unlink": "os.unlink(sys.path[-1] + '/victim')",
    "hard link out": "os.link(sys.path[-1] + '/victim', '/tmp/link')",
    "symbolic link out": "os.symlink('/etc/passwd', '/tmp/x'); open('/tmp/x').read()",
    "link to root": "os.symlink('/', '/tmp/x'); os.listdir('/tmp/x')",
    "up": "open('../../../../etc/passwd').read()",
    "own memory": "open('/proc/self/mem', 'rb')",
    "first process": "open('/proc/1/environ', 'rb')",
    "devices": "open('/dev/sda', 'rb')",
    "null device": "open('/dev/null', 'w')",
    "fork": "os.fork()",
    "fork bomb": "while True: os.fork()",
    "shell": "os.execv('/bin/sh', ['sh', '-c', 'id'])",
    "python": "os.execv(sys.executable, ['python', '-c', ''])",
    "system": "import subprocess; subprocess.run('id', shell=True)",
    "spawn": "os.posix_spawn('/bin/sh', ['sh'], {})",
    "session": "os.setsid()",
    "group": "os.setpgid(0, 0)",
    "kill all": "os.kill(-1, 9)",
    "kill group": "os.killpg(0, 9)",
    "kill parent": "os.kill(os.getppid(), 9)",
    "kill another": "os.kill(2, 9)",
    "fifo": "os.mkfifo('/tmp/fifo')",
    "device": "os.mknod('/tmp/null', 0o20666, os.makedev(1, 3))",
    "user": "os.setuid(0)",
    "group id": "os.setgid(0)",
    "chroot": "os.chroot('/tmp')",
    "memory file": "os.memfd_create('x')",
    "limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (10**6, 10**6))",
    "priority": "os.nice(-5)",
    "terminal": "import fcntl, termios; fcntl.ioctl(2, termios.TIOCSTI, b'x')",
    "affinity": "os.sched_setaffinity(0, {0})",
    "shared memory": """
        from multiprocessing import shared_memory
        shared_memory.SharedMemory(create=True, size=9)
        """,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_denied(walls: None, attack: str) -> None:
    errors = "OSError, ValueError" if attack == "limits" else "OSError, ImportError"
    result = run(denial(ATTACKS[attack], errors))
    assert result.status == "passed", result.stderr
    assert result.stdout.startswith("denied")


def test_threads_are_denied(walls: None) -> None:
    attack = "import threading; threading.Thread(target=print).start()"
    assert run(denial(attack, "RuntimeError")).status == "passed"


CALLS = """
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
numbers = {
    "ptrace": 101 if x86 else 117, "mount": 165 if x86 else 40, "unshare": 272 if x86 else 97,
    "setns": 308 if x86 else 268, "bpf": 321 if x86 else 280, "keyctl": 250 if x86 else 219,
    "perf_event_open": 298 if x86 else 241, "userfaultfd": 323 if x86 else 282,
    "io_uring_setup": 425, "process_vm_readv": 310 if x86 else 270,
    "process_vm_writev": 311 if x86 else 271, "open_by_handle_at": 304 if x86 else 265,
    "init_module": 175 if x86 else 105, "kexec_load": 246 if x86 else 104, "clone3": 435,
    "pidfd_open": 434, "seccomp": 317 if x86 else 277, "prctl": 157 if x86 else 167,
    "landlock_create_ruleset": 444, "mount_setattr": 442, "open_tree": 428, "fsopen": 430,
}
for name, number in numbers.items():
    assert libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1, name
    assert ctypes.get_errno() == 1, (name, ctypes.get_errno())
"""


def test_calls_of_the_kernel_itself_are_denied(walls: None) -> None:
    result = run(f"import ctypes, os\n{CALLS}\nprint(len(numbers))")
    assert (result.status, result.stdout) == ("passed", "22\n"), result.stderr


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="code for x86-64")
def test_calls_by_the_32_bit_door_end_the_process(walls: None) -> None:
    # mov eax, 359 (socket); int 0x80; ret
    result = run(
        """
        import ctypes, mmap
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(bytes.fromhex("b867010000cd80c3"))
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
        """
    )
    assert (result.status, result.stdout) == ("killed", "")


def test_secret_outside_is_unreadable(walls: None, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    secret.chmod(0o777)
    result = run(denial(f"print(open({str(secret)!r}).read())"))
    assert (result.status, "a secret" in result.stdout) == ("passed", False)
    result = run(f"import os; print(os.path.exists({str(secret)!r}))")
    assert result.stdout == "False\n"
    assert secret.read_text() == "a secret"


def test_environment_input_and_arguments_are_empty(
    walls: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "a secret")
    result = run(
        """
        import ctypes, os, sys
        environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
        names = []
        while environ[len(names)]:
            names.append(environ[len(names)].partition(b"=")[0])
        print(sorted(os.environ), sorted(names), sys.argv, repr(sys.stdin.read()))
        """
    )
    expected = "['HOME', 'TMPDIR'] [b'HOME', b'TMPDIR'] ['program'] ''\n"
    assert result.stdout == expected, result.stderr


def test_no_descriptor_is_inherited(walls: None, tmp_path: Path) -> None:
    mine = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(mine, True)
    result = run(
        """
        import os, stat
        kinds = []
        for number in range(3, 1000):
            try:
                kinds.append(stat.S_ISFIFO(os.fstat(number).st_mode))
            except OSError:
                pass
        print(kinds)
        """
    )
    os.close(mine)
    # The two ends of the pipe on which it is called.
    assert result.stdout == "[True, True]\n", result.stderr


@pytest.mark.parametrize("place", ["'/tmp/file'", "'file'"])
def test_files_are_bounded(walls: None, place: str) -> None:
    huge = f"with open({place}, 'wb') as file:\n    while True: file.write(bytes(1 << 20))"
    assert run(denial(huge)).status == "passed"
    many = "for i in range(10**6): open(f'/tmp/{i}', 'w').close()"
    assert run(denial(many)).status == "passed"
    kept = "files = []\nwhile True: files.append(open('/tmp/file', 'w'))"
    assert run(denial(kept)).status == "passed"


def test_nothing_is_left_behind(walls: None, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    n_open = len(os.listdir("/proc/self/fd"))
    run("open('/tmp/file', 'w').write('x')")
    run("while True: pass", timeout_seconds=0.1)
    run("", "1/0")
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_closed_streams_do_no_harm(walls: None) -> None:
    result = run("import os\nos.closerange(0, 3)", "assert program.os.getpid")
    assert result.status == "failed"
    assert (
        run("import os\nos.closerange(0, 3)\ndef f(): return 1", "assert program.f() == 1").status
        == "passed"
    )


# ---- verdicts that cannot be forged

FORGERIES = {
    "leaves early": "import os; os._exit(0)",
    "leaves when called": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "sys.exit when called": "import sys\ndef f(x): sys.exit(0)",
    "names of statuses": "class passed(Exception): pass\nraise passed",
    "names when called": "class passed(Exception): pass\ndef f(x): raise passed",
    "equals everything": """
        class Any:
            __eq__ = lambda self, other: True
            __lt__ = __bool__ = __eq__
        def f(x): return Any()
        """,
    "a number that equals everything": """
        class Any(int):
            __eq__ = lambda self, other: True
            __hash__ = int.__hash__
        def f(x): return Any(3)
        """,
    "other builtins": """
        import builtins, operator
        builtins.AssertionError = builtins.abs = lambda *a: 0
        builtins.all = lambda *a: True
        def f(x): return 3
        """,
    "prints a verdict": "print('passed'); print({'status': 'passed'})\ndef f(x): return 3",
    "writes everywhere": """
        import os
        from rslm.evaluate.sandbox_messages import encode
        for message in [{"missing": []}, {"status": "passed", "reason": "", "seconds": 0.0}]:
            data = encode(message)
            for number in range(64):
                try: os.write(number, len(data).to_bytes(8, "big") + data)
                except OSError: pass
        def f(x): return 3
        """,
    "changes the harness": """
        import rslm.evaluate.sandbox_child as child
        for name in ("_explain", "_run_test", "_judge", "_why"):
            setattr(child, name, lambda *a: ("passed", ""))
        child.Program.__getattr__ = lambda self, name: lambda *a: 2
        def f(x): return 3
        """,
    "claims a refusal": """
        import rslm.evaluate.sandbox_child as child, sys
        frame = sys._getframe()
        while "judge" not in frame.f_locals: frame = frame.f_back
        frame.f_locals["judge"].send("the kernel is to blame")
        def f(x): return 3
        """,
    "sends rubbish": """
        import os
        for number in range(3, 9):
            try: os.write(number, b"x" * 99)
            except OSError: pass
        """,
    "claims a long message": """
        import os
        for number in range(3, 9):
            try: os.write(number, b"\\x7f" * 8)
            except OSError: pass
        """,
    "closes the pipe": "import os\nos.closerange(3, 99)\nwhile True: pass",
    "deep answer": "def f(x):\n    y = []\n    for _ in range(900): y = [y]\n    return y",
    "endless answer": "def f(x): return [0] * 10**8",
    "no plain data": "def f(x): return (i for i in [2])",
    "ends itself": "import os, signal\ndef f(x): os.kill(os.getpid(), 11); os.abort()",
    "stops reading": "import time\ndef f(x): return 3",
    "loads nothing": "",
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_verdict_is_not_forged(walls: None, forgery: str) -> None:
    result = run(FORGERIES[forgery], "assert program.f(1) == 2", memory_bytes=512 << 20)
    assert result.status in ("failed", "killed", "memory"), result


def test_test_is_out_of_reach(walls: None) -> None:
    result = run(
        """
        import gc, sys
        def f():
            texts = [repr(list(module.__dict__.values())) for module in list(sys.modules.values())]
            frame = sys._getframe()
            while frame:
                texts.append(repr(frame.f_locals)); frame = frame.f_back
            texts += [repr(item) for item in gc.get_objects() if isinstance(item, (dict, list))]
            return sum("THE" + "_ANSWER" in text for text in texts)
        """,
        "assert program.f() == 0, 'THE_ANSWER'",
    )
    assert result.status == "passed", result.stderr


def test_arguments_are_copies(walls: None) -> None:
    test = "x = [2, 1]\nassert program.f(x) == [1, 2] and x == [2, 1]"
    assert run("def f(x):\n    x.sort()\n    return x", test).status == "passed"


HOSTILE_TESTS = {
    "leaves": "import os; os._exit(0)",
    "kills itself": "import os; os.kill(os.getpid(), 9)",
    "floods": "import os, sys\nwhile True: os.write(int(sys.argv[1]), bytes(1 << 16))",
    "lies": """
import os, sys
from rslm.evaluate.sandbox_messages import encode
data = encode({"status": "won", "reason": "", "seconds": 0.0})
os.write(int(sys.argv[1]), len(data).to_bytes(8, "big") + data)
os._exit(0)
""",
    "reads": "open('/etc/passwd')",
    "writes": "open('/tmp/file', 'w')",
    "connects": "import socket; socket.socket()",
    "forks": "import os; os.fork()",
    "kills": "import os; os.kill(1, 9)",
    "refuses": """
import os, sys
from rslm.evaluate.sandbox_messages import encode
data = encode({"refused": "the kernel"})
os.write(int(sys.argv[1]), len(data).to_bytes(8, "big") + data)
""",
}


@pytest.mark.parametrize("test", HOSTILE_TESTS)
def test_tests_from_a_hostile_file_harm_nobody(walls: None, monkeypatch, test: str) -> None:
    monkeypatch.setattr(sandbox, "_END_SECONDS", 0.1)
    result = run("", HOSTILE_TESTS[test])
    assert result.status in ("failed", "killed", "output"), result


# ---- one wall down, the others stand


def run_without(monkeypatch: pytest.MonkeyPatch, wall: str, code: str, **limits) -> SandboxResult:
    monkeypatch.setattr(sandbox, "_without", (wall,))
    result = run(code, unsafe=True, **limits)
    assert result.missing == (f"{wall}: left out",)
    return result


@pytest.mark.parametrize("wall", ["namespaces", "landlock", "seccomp"])
@pytest.mark.parametrize(
    "attack", ["passwd", "new file", "its own code", "truncate", "unlink", "up", "devices", "shell"]
)
def test_files_stay_closed_without(walls: None, monkeypatch, wall: str, attack: str) -> None:
    result = run_without(monkeypatch, wall, denial(ATTACKS[attack]))
    assert result.status == "passed", result.stderr


@pytest.mark.parametrize("wall", ["namespaces", "landlock", "seccomp"])
def test_network_stays_closed_without(walls: None, monkeypatch, wall: str) -> None:
    assert run_without(monkeypatch, wall, denial(ATTACKS["tcp"])).status == "passed"


@pytest.mark.parametrize("wall", ["namespaces", "landlock", "seccomp"])
@pytest.mark.parametrize("attack", ["mode", "owner", "times", "kill parent"])
def test_root_is_powerless_without(walls: None, monkeypatch, wall: str, attack: str) -> None:
    code = denial(ATTACKS[attack])
    if (wall, attack) == ("seccomp", "kill parent"):
        code = "import os; assert os.getppid() == 0"
    assert run_without(monkeypatch, wall, code).status == "passed"


def test_daemon_dies_without_seccomp(walls: None, monkeypatch) -> None:
    marker = mark_processes(monkeypatch)
    daemon = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 1000)
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        """
    assert run_without(monkeypatch, "seccomp", daemon).status == "passed"
    await_no_process(marker)
    sleeper = run_without(
        monkeypatch, "seccomp", daemon + "\n        time.sleep(1000)", timeout_seconds=0.3
    )
    assert sleeper.status == "timeout"
    await_no_process(marker)


def mark_processes(monkeypatch: pytest.MonkeyPatch) -> str:
    marker = uuid.uuid4().hex
    monkeypatch.setattr(sandbox, "_START", f"{sandbox._START}# {marker}\n")
    return marker


def marked_processes(marker: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def await_no_process(marker: str) -> None:
    deadline = time.monotonic() + LONG
    while (left := marked_processes(marker)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_nothing_outlives_a_killed_parent(walls: None) -> None:
    marker = uuid.uuid4().hex
    program = (
        "from rslm.evaluate import sandbox\n"
        f"sandbox._START += '# {marker}'\n"
        "sandbox.run_untrusted('while True: pass', timeout_seconds=1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + LONG
    # Judge and runner; the runner's own is there once it has run.
    while len(marked_processes(marker)) < 2:
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    await_no_process(marker)


# ---- refusals

UNSHARE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
ids = os.getuid(), os.getgid()
if libc.unshare(0x10000000):
    raise SystemExit(77)
maps = {"setgroups": "deny", "uid_map": f"0 {ids[0]} 1", "gid_map": f"0 {ids[1]} 1"}
for name, text in maps.items():
    open(f"/proc/self/{name}", "w").write(text)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
"""

FILTER = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
# Load the number of the call; if it is this one answer ENOSYS, else allow.
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBER), (6, 0, 0, 0x50000 | 38), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    raise SystemExit(77)
"""

ASK = """
from rslm.evaluate.sandbox import check_sandbox, run_untrusted
try:
    run_untrusted("print(1)")
except OSError as error:
    print(error)
else:
    print("it ran")
result = run_untrusted("print(open('/etc/hostname').read())", unsafe=True)
print(result.status, *result.missing, sep="\\n")
"""


@pytest.mark.parametrize(
    ("preparation", "wall", "sentence"),
    [
        (UNSHARE, "namespaces", "make no user"),
        (FILTER.replace("NUMBER", "444"), "landlock", "Landlock of version 3"),
        (FILTER.replace("NUMBER", "442"), "namespaces", "mount_setattr"),
    ],
)
def test_missing_wall_is_refused_by_name(
    walls: None, preparation: str, wall: str, sentence: str
) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", preparation + ASK], capture_output=True, text=True, timeout=LONG
    )
    if answer.returncode == 77:
        pytest.skip("this system cannot be made poorer for a test")
    assert answer.returncode == 0, answer.stderr
    refusal, *rest = answer.stdout.splitlines()
    assert refusal.startswith("no code is run, for the sandbox cannot be closed here: ")
    assert sentence in refusal
    # Asked to go on, it says what it does without; what is left still keeps files closed.
    assert rest[0] == "failed"
    assert [line.partition(":")[0] for line in rest[1:]] == [wall]


def test_refusal_where_nothing_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_START", "raise ImportError('no such thing')")
    with pytest.raises(OSError, match=r"did not start: (?s:.*)no such thing"):
        run("")
