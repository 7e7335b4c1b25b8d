"""What every request passes before a page is made: the Host it came by, who sent it, and whether a form is ours.

An ASGI application around the pages' own. It answers what is refused, and puts on every answer the headers by which a
browser runs, frames and stores nothing that it should not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response

from runner.escape import visible
from runner.loopback import names_this_machine
from runner.model.registry_rules import Person
from runner.ui.access import FormRefused, OneTimeToken, Passwords, Session, Sessions, TooManyTries
from runner.ui.view import POLICY, View

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

FORM_BYTES = 64 * 1024
OPEN = ("/static/",)  # what anybody may have: style and script
TOKEN, SIGN_IN, SIGN_OUT = "token", "/sign-in", "/sign-out"
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may come in. Exactly one of `token`, `passwords`, `header` and `jupyter` is how people are known."""

    account: str  # of this process: who brings the token acts as it
    cookie: str
    token: OneTimeToken | None = None
    passwords: Passwords | None = None
    header: str = ""
    jupyter: bool = False  # whoever comes is the account: only its own Jupyter reaches the socket
    hosts: frozenset[str] = frozenset()  # names beside this machine's that requests may come by
    on_sign_in: Callable[[], None] = lambda: None  # after the token was taken
    sessions: Sessions = field(default_factory=Sessions)

    def answers(self, host: str) -> bool:
        """Whether a request that came by this Host is answered; see runner.loopback of DNS rebinding.

        A password's session is worth nothing under another name, so there any Host is, unless some were named.
        """
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        known = names_this_machine(host.encode("latin-1", "replace")) or name.lower() in self.hosts
        return known or self.jupyter or (self.passwords is not None and not self.hosts)

    @property
    def asks_each_time(self) -> bool:
        """Whether who comes is known from each request, so that nobody signs in or out."""
        return bool(self.header) or self.jupyter


class Refusal(Exception):
    """A request that is answered here: with a status, and a sentence that says why."""

    def __init__(self, status: int, sentence: str, *, wait_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.wait_s = status, sentence, wait_s


class Guard:
    """Lets in who may, with `scope["state"]` saying who it is and what a form held."""

    def __init__(self, app: ASGIApp, access: Access, view: Callable[[int], View], *, prefix: str = "") -> None:
        """`prefix` is the path before every address, where a proxy leaves it there."""
        self._app, self._access, self._view = app, access, view
        self._prefix = prefix.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self._prefix and str(scope["path"]).startswith(f"{self._prefix}/"):
            scope["root_path"] = self._prefix
        cookie: list[str] = []

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                for value in cookie:
                    headers.append("set-cookie", value)
            await send(message)

        try:
            # first: whoever is answered while sending may lose the answer
            body = b"" if scope["method"] in ("GET", "HEAD") else await _body(receive)
            response = await self._admit(scope, body, cookie)
        except Refusal as refusal:
            response = self._refused(scope, refusal)
        if response is None:
            await self._app(scope, receive, guarded)
        else:
            await response(scope, receive, guarded)

    async def _admit(self, scope: Scope, body: bytes, cookie: list[str]) -> Response | None:
        """An answer, or None where the pages are to give it."""
        headers, path, method = Headers(scope=scope), page_path(scope), scope["method"]
        if not self._access.answers(headers.get("host", "")):
            raise Refusal(421, "These pages have no such name. Open them by the address that `runner ui` printed.")
        if path.startswith(OPEN) and method in ("GET", "HEAD"):
            return None
        if method == "POST":
            _check_origin(headers)
        elif method not in ("GET", "HEAD"):
            raise Refusal(405, f"{method} is nothing that these pages answer.")
        form = _form(scope, body) if method == "POST" else {}
        session_id, session = self._session(headers, cookie)
        if path == SIGN_IN and method == "POST" and self._access.passwords is not None:
            return await self._sign_in(scope, form, self._access.passwords, cookie)
        if session is None:
            return self._by_token(scope, path, cookie)
        if method == "POST":
            try:
                self._access.sessions.take_form(session, path, form.get(TOKEN, ""))
            except FormRefused as error:
                remedy = "Nothing was done now. Look at the page again, and repeat there what is still to do."
                raise Refusal(403, f"{error} {remedy}") from error
        if path == SIGN_OUT and method == "POST":
            self._access.sessions.end(session_id)
            cookie.append(f"{self._access.cookie}=; Max-Age=0; HttpOnly; SameSite=Strict")
            return RedirectResponse("./", 303)
        if path == "/" and TOKEN in dict(parse_qsl(scope["query_string"].decode("latin-1"))):
            return _entered()  # who is in already; the token stays good for another browser
        scope.setdefault("state", {}).update(session=session, form=form)
        return None

    def _session(self, headers: Headers, cookie: list[str]) -> tuple[str, Session | None]:
        """The session of the request's cookie; behind a proxy that of whom its header names."""
        sessions, name = self._access.sessions, ""
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(headers.get("cookie", ""))
        except CookieError:
            jar.clear()
        if self._access.cookie in jar:
            name = jar[self._access.cookie].value
        session = sessions.find(name) if name else None
        if self._access.jupyter and session is None:
            name = sessions.begin(Person(self._access.account, "jupyter"))
            cookie.append(self._cookie(name, headers))
            session = sessions.find(name)
        if not self._access.header:
            return name, session
        named = headers.getlist(self._access.header)
        who = named[0].strip() if len(named) == 1 else ""
        if not who or len(who) > 200 or visible(who) != who:
            raise Refusal(401, f"The proxy did not say who you are: it has to send one {self._access.header} header.")
        if session is None or session.person.who != who:
            name = sessions.begin(Person(who, f"header {self._access.header}"))
            cookie.append(self._cookie(name, headers))
            session = sessions.find(name)
        return name, session

    def _cookie(self, name: str, headers: Headers) -> str:
        """Without a path, so that it holds below the prefix under which these pages are, whatever that is."""
        secure = "; Secure" if headers.get("x-forwarded-proto", "").lower() == "https" else ""
        return f"{self._access.cookie}={name}; HttpOnly; SameSite=Strict{secure}"

    def _by_token(self, scope: Scope, path: str, cookie: list[str]) -> Response:
        """Let in whoever brings the token of the printed address. Raises Refusal."""
        token = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get(TOKEN, "")
        if self._access.token is None:
            raise Refusal(401, "")
        if path != "/" or scope["method"] == "HEAD" or not token:
            raise Refusal(401, "Open the address that `runner ui` printed; it lets one browser in.")
        if not self._access.token.take(token):
            raise Refusal(
                401, "This address was used before, or is of an earlier start. `runner ui` has printed a newer one."
            )
        name = self._access.sessions.begin(Person(self._access.account, "address"))
        cookie.append(self._cookie(name, Headers(scope=scope)))
        self._access.on_sign_in()
        return _entered()

    async def _sign_in(self, scope: Scope, form: dict[str, str], passwords: Passwords, cookie: list[str]) -> Response:
        from starlette.concurrency import run_in_threadpool

        name, address = form.get("name", "").strip(), (scope.get("client") or ("", 0))[0]
        try:
            right = await run_in_threadpool(passwords.check, name, form.get("password", ""), address)
        except TooManyTries as error:
            raise Refusal(429, str(error), wait_s=error.wait_s) from error
        if not right:
            raise Refusal(401, "Name or password is wrong.")
        cookie.append(self._cookie(self._access.sessions.begin(Person(name, "password")), Headers(scope=scope)))
        return RedirectResponse("./", 303)

    def _refused(self, scope: Scope, refusal: Refusal) -> Response:
        """The refusal as a page, which says no more than it has to."""
        view = self._view(max(0, page_path(scope).count("/") - 1))
        asks = refusal.status in (401, 429) and self._access.passwords is not None
        body = view.render("refused.html.j2", sentence=refusal.sentence, asks=asks, status=refusal.status)
        headers = {"retry-after": f"{refusal.wait_s:.0f}"} if refusal.wait_s else {}
        return HTMLResponse(body, refusal.status, headers)


def _entered() -> Response:
    """A page that leads on by itself: a redirect would still belong to whoever linked here, without the cookie."""
    return HTMLResponse(
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Signed in</title>'
        '<meta http-equiv="refresh" content="0; url=./"><p><a href="./">Go on</a></p></html>'
    )


def page_path(scope: Scope) -> str:
    """The request's path below the prefix under which these pages are."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(prefix) or "/" if prefix and path.startswith(f"{prefix}/") else path


def _check_origin(headers: Headers) -> None:
    """Raises Refusal for a form of another site; browsers say where it comes from, in one header or the other."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    ours = site == "same-origin" if site is not None else origin is None or urlsplit(origin).netloc == headers["host"]
    if not ours:
        raise Refusal(403, "This form comes from another site. Nothing was done.")


async def _body(receive: Receive) -> bytes:
    """All of it. Raises Refusal for a long one."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "The connection was closed.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > FORM_BYTES:
            raise Refusal(413, f"The form is longer than {FORM_BYTES // 1024} kB.")
        more = message.get("more_body", False)
    return b"".join(parts)


def _form(scope: Scope, body: bytes) -> dict[str, str]:
    """The fields of an urlencoded form. Raises Refusal for another kind of body."""
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refusal(415, "Only these pages' own forms are taken.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=False, max_num_fields=50))
    except (UnicodeDecodeError, ValueError) as error:
        raise Refusal(400, "The form cannot be read.") from error
