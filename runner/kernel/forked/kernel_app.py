"""ipykernel without its sockets and threads: a fork server makes it once, and every kernel it forks uses it.

The application, the kernel and the shell are ipykernel's own, so that cells find the same as in Jupyter. The session
sends messages by one line to the runner.
"""
# mypy: disallow-untyped-calls=False
# (ipykernel is not annotated)

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from runner.import_blocking import without
from runner.kernel.fd_capture import Pump
from runner.kernel.forked.framing import Kind, frame
from runner.kernel.preload import Preload
from runner.kernel.stream import CappedStream, LimitedSession, named_as, pack, write_captured

with without("debugpy"):  # 0.2 s for a debugger that nobody attaches
    # the first three are what every shell imports later
    import IPython.core.logger
    import IPython.extensions.storemagic  # noqa: F401
    import tornado.platform.asyncio  # noqa: F401
    from ipykernel.displayhook import ZMQDisplayHook
    from ipykernel.iostream import OutStream
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelapp import IPKernelApp
    from traitlets import default

    from runner.kernel.shell import HISTORY, NotebookKernel, configure_app

INLINE = "module://matplotlib_inline.backend_inline"
COMMS = ("comm_open", "comm_msg", "comm_close")
SHELL, IOPUB = object(), object()  # where ipykernel means to send a message


class SocketSession(LimitedSession):
    """Jupyter's session with one socket for all channels. Before `connect` it drops messages.

    A cell's reply goes with the status idle that follows it, and busy with what follows that: each time the runner is
    woken costs more than its message.
    """

    line: socket.socket | None = None
    held = b""

    def connect(self, line: socket.socket) -> None:
        self.line, self.owner, self.lock = line, os.getpid(), threading.Lock()

    def deliver(self, stream: Any, message: dict[str, Any], **_: Any) -> None:
        """Put a message on the line; a process that a cell forked can only print."""
        kind, content = message["header"]["msg_type"], message["content"]
        if self.line is None:
            return
        if kind in COMMS:
            self.refuse("a cell talks to a widget in the browser (a comm)")
        if self.is_ours:
            payload = {"type": kind, "parent": message["parent_header"].get("msg_id"), "content": content}
            followed = kind == "execute_reply" or content.get("execution_state") == "busy"
            self.put(Kind.REPLY if stream is SHELL else Kind.PUBLISHED, pack(payload), hold=followed)
        elif kind == "stream":
            write_captured(content)

    def put(self, kind: Kind, payload: bytes, *, hold: bool = False) -> None:
        """Send it after what is held; with `hold` it is sent with the next one."""
        assert self.line is not None
        with self.lock:
            self.held += frame(kind, payload)
            if not hold:
                sent, self.held = self.held, b""
                self.line.sendall(sent)

    def refuse(self, why: str) -> NoReturn:
        """Ask for the standard kernel, and do nothing more: the runner ends this process."""
        self.put(Kind.REFUSED, pack(why))
        while True:
            signal.pause()


@named_as(OutStream)
class PumpedStream(CappedStream):
    """A cell's stdout or stderr in a forked kernel; until it is connected it writes to the server's."""

    def write(self, string: str) -> int:
        if self.closed or self.pub_thread.connected or self.keeper is not None:
            return super().write(string)
        os.write(self.fileno(), string.encode(errors="replace"))
        return len(string)

    def flush(self) -> None:
        if self.closed or not self.pub_thread.connected:
            return
        if self._is_master_process():
            with self.pub_thread.settled():
                self._flush()
        else:
            self._flush()

    def begin(self) -> None:
        """In the process that is to be the notebook's kernel."""
        self._master_pid = os.getpid()

    def forget(self) -> None:
        """In a process that a cell forked: what was printed before is the parent's to show."""
        self._buffer_lock = threading.RLock()
        self._rotate_buffers()


@named_as(IPythonKernel)
class ForkedIPythonKernel(NotebookKernel):
    """Handles one request at a time, in the process's main thread, with a running loop as in any kernel."""

    session: Any
    parent: Any
    _execute_sleep = 0.0  # for zmq; here what was sent first arrives first
    _supports_kernel_subshells = False

    async def handle(self, message: dict[str, Any], pump: Pump) -> None:
        """One request, from busy to idle."""
        self.session.display_limits.begin()
        self.set_parent([], message, channel="shell")
        self._publish_status("busy", "shell")
        self.pre_handler_hook()
        handler = self.shell_handlers.get(message["header"]["msg_type"])
        try:
            if handler is not None:
                await handler(SHELL, [], message)
        except KeyboardInterrupt:
            self.log.error("KeyboardInterrupt caught in kernel.")
        except Exception:  # as in ipykernel; the runner notices that there is no reply
            self.log.exception("Exception in message handler:")
        finally:
            if not self.session.is_ours:  # a cell has forked, and this is the fork that reached its end
                for stream in self.parent.streams:
                    stream.flush()
                os._exit(0)
            self.post_handler_hook()
        with pump.settled():
            try:
                for stream in self.parent.streams:
                    stream.flush()
            finally:  # it sends what is held
                self._publish_status("idle", "shell")

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        """Nothing is queued: the runner sends a request when the one before is done."""


@named_as(IPKernelApp)
class ForkedApp(IPKernelApp):
    """`build()` makes it in the server; `begin` prepares it in the forked process for one notebook."""

    session: Any
    shell: Any
    preload: Preload
    pump: Pump
    streams: list[PumpedStream]

    def init_blackhole(self) -> None: ...
    def init_connection_file(self) -> None: ...
    def init_poller(self) -> None: ...
    def init_sockets(self) -> None: ...
    def init_heartbeat(self) -> None: ...
    def write_connection_file(self, **_: Any) -> None: ...
    def log_connection_info(self) -> None: ...
    def init_signal(self) -> None: ...

    @default("connection_dir")
    def _refuse_connection(self) -> Any:
        return self.session.refuse("a cell asks how to connect to its kernel")

    def init_io(self) -> None:
        self.configure_tornado_logger()
        self.patch_io()

    def init_kernel(self) -> None:
        self.kernel = ForkedIPythonKernel.instance(
            parent=self,
            session=self.session,
            iopub_socket=IOPUB,
            shell_channel_thread=SimpleNamespace(parent_thread=threading.main_thread()),
            log=self.log,
            profile_dir=self.profile_dir,
            user_ns=self.user_ns,
        )

    # `begin` calls these: they run the user's IPython profile, and read the environment
    def init_path(self) -> None: ...
    def init_gui_pylab(self) -> None: ...
    def init_extensions(self) -> None: ...
    def init_code(self) -> None: ...

    def begin(self, line: socket.socket) -> None:
        """Connect, capture what is printed, and prepare the shell as Jupyter would. The environment is in place."""
        self.session.connect(line)
        self.pump.connect(line)
        CappedStream.capture = self.pump
        for stream in self.streams:
            stream.begin()
        sys.displayhook = self.displayhook = _displayhook(self)
        os.register_at_fork(after_in_child=self.forget)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.shell.init_environment()
        super().init_path()
        super().init_gui_pylab()
        super().init_extensions()
        self._run_first_code()
        self.shell.starting_dir = str(Path.cwd())
        self.shell.user_ns["_dh"][:] = [Path.cwd()]  # where `%cd -` leads back to
        for stream in self.streams:
            stream.flush()
        self.preload.begin()
        self.pump.begin(*(stream.captured for stream in self.streams))

    def _run_first_code(self) -> None:
        """IPython's `init_code`, which also lists all modules for `%reset --aggressive`: the server has done that, and
        once more here would copy the pages of all their names."""
        self._run_startup_files()
        self._run_exec_lines()
        self._run_exec_files()
        if self.hide_initial_ns:
            self.shell.user_ns_hidden.update(self.shell.user_ns)
        self._run_cmd_line_code()
        self._run_module()
        if len(self.shell._sys_modules_keys) != len(sys.modules):  # what has just run has imported more
            self.shell._sys_modules_keys = set(sys.modules)

    def forget(self) -> None:
        """In a process that a cell forked: nobody holds a lock, and nothing waits to be printed."""
        self.session.lock = threading.Lock()
        self.pump.forget()
        for stream in self.streams:
            stream.forget()


def build() -> Any:
    """The ForkedApp with its kernel and shell; no cell has run."""
    app: Any = ForkedApp.instance()
    # what ipykernel sets before any cell: pyplot, loaded ahead, looks at it when it is imported
    os.environ["MPLBACKEND"] = os.environ.get("MPLBACKEND") or INLINE
    app.session = SocketSession(parent=app)
    with without("debugpy"):
        app.initialize([HISTORY])
    configure_app(app)
    app.shell.history_manager.close = lambda: None  # it is in memory, which ends with the process
    app.preload = Preload(app.shell)
    app.pump = Pump()
    app.streams = [PumpedStream(app.session, app.pump, name) for name in ("stdout", "stderr")]
    sys.stdout, sys.stderr = app.streams
    return app


def _displayhook(app: ForkedApp) -> Any:
    hook: Any = ZMQDisplayHook(app.session, IOPUB)
    hook.get_execution_count = lambda: app.kernel.execution_count
    return hook
