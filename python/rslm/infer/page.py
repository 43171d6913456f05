"""The server's page: one HTML file with its style and its script inside, and what it may do.

Its parts lie in `ui.html` and the folder `ui`; colours and the list of tokens are those of
`html_report`.
"""

import base64
import functools
import hashlib
import re
from importlib.resources import files
from string import Template

STYLES = ("html_report/theme.css", "html_report/tokens.css", "infer/ui/ui.css")
SCRIPTS = (
    "html_report/tokens.js",
    *[f"infer/ui/{name}.js" for name in ("client", "prose", "answer", "settings")],
    *[f"infer/ui/{name}.js" for name in ("chat", "complete", "tokens_view", "main")],
)

_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "trusted-types 'none'; require-trusted-types-for 'script'"
)


@functools.cache
def page_and_csp() -> tuple[bytes, str]:
    """The page, and the Content-Security-Policy to send with it.

    The policy runs the one script and applies the one style whose hashes it names, lets the
    page ask this server alone, and lets no text become markup.
    """
    style, script = (_joined(names) for names in (STYLES, SCRIPTS))
    assert not re.search("</style|<!--", style), "it would end its element"
    assert not re.search("</script|<!--", script, re.IGNORECASE), "it would end its element"
    html = Template(_read("infer/ui.html")).substitute(style=style, script=script)
    policy = _POLICY.format(script=_hash_of(script), style=_hash_of(style))
    return html.encode(), policy


def _joined(names: tuple[str, ...]) -> str:
    return "\n" + "\n".join(map(_read, names))


def _read(name: str) -> str:
    # A text file may have been checked out with other line ends; a browser hashes these.
    text = files("rslm").joinpath(name).read_text(encoding="utf-8")
    return re.sub("\r\n?", "\n", text)


def _hash_of(source: str) -> str:
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return f"'sha256-{digest}'"
