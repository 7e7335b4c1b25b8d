"""The same notebooks through a forked kernel, the standard one and papermill's own engine: the same cells come out."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support.executed import WIDGETS, Cells, Executed, by_papermill, by_step, outputs, plain
from support.projects import code, text
from support.some import some

from runner.step.local import LocalExecutor
from runner.step.saving import Saver

OUTPUTS: Cells = [
    text("# outputs"),
    "print('one'); print('two')",
    "import sys\nprint('out'); print('err', file=sys.stderr); print('out again')",
    "1 + 1",
    "x = 5",
    "x;",
    "_ + x, __, In[2], Out[4]",
    "from IPython.display import HTML, Image, JSON, Latex, Markdown, SVG, Javascript, display, clear_output\nHTML('<b>bold</b>')",
    "display(Markdown('# head'), metadata={'text/markdown': {'a': 1}}); display({'text/plain': 'raw'}, raw=True)",
    "display(JSON({'a': [1, 2]}), Latex('$x$'), SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'), Javascript('1'))",
    "import base64\nImage(base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='))",
    "print('before'); display('shown'); print('after'); 'result'",
    "handle = display('first', display_id='a'); display('other')",
    "handle.update('second'); display('third', display_id='a', update=True)",
    "display('again', display_id='a')",
    "from runner.scraps import report\nfor n in range(3): report('auc', n / 4, n); report('loss', 1 - n, n)",
    "report('auc', 0.9, 3)",
    "for n in range(3):\n    clear_output(wait=True)\n    print('step', n)",
    "print('gone'); clear_output(); print('kept')",
    "print('progress 1\\rprogress 2')",
    "class Rich:\n    def _repr_html_(self): return '<i>rich</i>'\n    def __repr__(self): return 'plain'\nRich()",
    "class Broken:\n    def __repr__(self): raise ValueError('no repr')\n'fine'",
    "class Bundle:\n    def _repr_mimebundle_(self, include=None, exclude=None):\n        return {'text/plain': 'b', 'application/x+json': {'nan': float('nan'), 'n': 1}}\nBundle()",
    "import pandas as pd, numpy as np\nframe = pd.DataFrame({'a': range(3), 'b': list('xyz')}); frame",
    "display(frame.head(1)); frame['a'].describe()",
    "pd.DataFrame(np.zeros((100, 40)))",
    "None",
    "",
    "# only a comment",
    "get_ipython().__class__.__name__, type(get_ipython().kernel).__mro__[-2].__name__, __name__",
    "from IPython import get_ipython as found\nfound() is get_ipython(), 'IPKernelApp' in get_ipython().config",
    "get_ipython().execution_count, get_ipython().get_parent()['header']['msg_type']",
    "import __main__\n__main__.frame is frame, hasattr(__main__, '__file__'), __main__.__spec__",
    "len(sys.argv), sys.argv[1], sys.stdout.isatty(), sys.stdout.encoding, hasattr(sys.stdout, 'buffer')",
    "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)",
    "def warns(): warnings.warn('once here')\nwarns(); warns()",
    "import logging\nlogging.warning('logged'); logging.getLogger('x').error('too')",
    "np.seterr(all='raise')['divide']",
    "np.geterr()['divide']",
    "import contextvars, decimal\nv = contextvars.ContextVar('v', default=0); v.set(7); decimal.getcontext().prec = 5",
    "v.get(), decimal.getcontext().prec",
    "import os\nos.environ['TERM'], os.environ['PAGER'], os.environ['CLICOLOR'], os.environ.get('MPLBACKEND')",
    "sys.flags.hash_randomization, sys.version, sys.executable",
    "lambda_ = lambda: 1\nimport pickle, inspect\ninspect.getsource(lambda_)",
    "%who_ls int",
    "help(len)",
]

MAGICS: Cells = [
    "%%time\nsum(range(10))",
    "%time x = 1",
    "%%timeit -n1 -r1 -q\npass",
    "%%capture kept\nprint('captured')",
    "kept.stdout",
    "!echo from-shell; echo to-stderr >&2",
    "found = !echo one; echo two\nfound",
    "!exit 3",
    "_exit_code",
    "%%bash\necho bash; echo err >&2",
    "%%sh\nfalse",
    "%%writefile made.txt\ncontent",
    "%cat made.txt",
    "%pwd\n",
    "import os; os.path.exists('made.txt')",
    "%config InlineBackend.figure_format",
    "%precision 3",
    "3.14159",
    "%lsmagic\n1",
    "%%html\n<b>cell</b>",
    "%%javascript\nlet a = 1",
    "%env RUNNER_CONFORMS=1",
    "os.environ['RUNNER_CONFORMS']",
    "%xmode Minimal",
    code("1 / 0", "raises-exception"),
    "%xmode Context",
    "len?",
    "%history -n 1-2",
    "%alias_magic t timeit",
    code("%no_such_magic", "raises-exception"),
    "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True).stdout)",
    "subprocess.run(['echo', 'inherited']).returncode",
    "os.system('echo from-system; echo err >&2')",
    "import ctypes\nlibc = ctypes.CDLL(None); libc.puts(b'from C'); libc.fflush(None); os.write(1, b'fd 1\\n'); os.write(2, b'fd 2\\n')\nimport time; time.sleep(.5)",
    "os.write(1, 'ü€'.encode() * 3000) and None\ntime.sleep(.5)",
    # a notebook's own transformer, and how often it is called
    "calls = []\ndef count(lines):\n    calls.append(lines)\n    return lines\n"
    "get_ipython().input_transformer_manager.line_transforms.append(count)",
    "'once more'",
    "calls",
    "get_ipython().input_transformer_manager.line_transforms.remove(count)",
    "len(calls)",
    "%time 1",
    "%time 1",
]

ERRORS: Cells = [
    code("1 / 0", "raises-exception"),
    code("def f(x):\n    return g(x)\ndef g(x):\n    return {}[x]\nf('key')", "raises-exception"),
    code("if True\n    pass", "raises-exception"),
    code("  x = 1\n y = 2", "raises-exception"),
    code("import no_such_module", "raises-exception"),
    code("import json\njson.loads('{')", "raises-exception"),
    code("try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError('chained') from e", "raises-exception"),
    code("raise ExceptionGroup('many', [ValueError(1), TypeError('two')])", "raises-exception"),
    code(
        "print('before'); import sys; print('err', file=sys.stderr); raise RuntimeError('after output')",
        "raises-exception",
    ),
    code("class Odd(Exception):\n    def __str__(self): return 'odd\\nlines'\nraise Odd", "raises-exception"),
    code("class Broken:\n    def __repr__(self): raise ValueError('no repr')\nBroken()", "raises-exception"),
    code(
        "class Half:\n    def _repr_html_(self): raise ValueError('no html')\n    def __repr__(self): return 'half'\nHalf()",
        "raises-exception",
    ),
    code("input('name? ')", "raises-exception"),
    code("import getpass; getpass.getpass()", "raises-exception"),
    code("assert 1 == 2, 'sums'", "raises-exception"),
    code("import sys; sys.exit(3)", "raises-exception"),
    code("raise SystemExit", "raises-exception"),
    code("raise KeyboardInterrupt", "raises-exception"),
    code(
        "import asyncio\nnap = asyncio.sleep(0)\ntry:\n    asyncio.run(nap)\nfinally:\n    nap.close()",
        "raises-exception",
    ),
    code(
        "async def bad():\n    await asyncio.sleep(0)\n    raise LookupError('in await')\nawait bad()",
        "raises-exception",
    ),
    code(
        "from IPython.core.getipython import get_ipython\nget_ipython().run_line_magic('run', 'missing.py')",
        "raises-exception",
    ),
    code("%%python\nraise ValueError('inner')", "raises-exception"),
    code("import pandas as pd\npd.DataFrame({'a': [1]})['b']", "raises-exception"),
    code("eval('1 +')", "raises-exception"),
    "'still here'",
    "def f():\n    breakpoint()\n    return 'not stopped'\nf()",
    code("import pdb; pdb.set_trace()\nprint('never')", "raises-exception"),
    code("%no_such_magic", "raises-exception"),
    code("%%no_such_magic\n1", "raises-exception"),
    code("import asyncio\nasync with asyncio.timeout(.01): await asyncio.sleep(1)", "raises-exception"),
    code("await asyncio.wait_for(asyncio.sleep(1), .01)", "raises-exception"),
    code("raise asyncio.CancelledError('by itself')", "raises-exception"),
    code(
        "async def fails(): raise ValueError('in a task')\n"
        "async with asyncio.TaskGroup() as tasks:\n    tasks.create_task(fails())",
        "raises-exception",
    ),
    code("raise BaseExceptionGroup('of both', [KeyboardInterrupt(), SystemExit(1)])", "raises-exception"),
    code(
        "get_ipython().set_custom_exc((LookupError,), lambda *_, **__: None)\nraise LookupError('shown by nobody')",
        "raises-exception",
    ),
    code("skipped = True", "skip-execution"),
    "'skipped' in globals()",
    code("1 + 1", "raises-exception"),
]

ASYNC: Cells = [
    "import asyncio\nawait asyncio.sleep(0.01)\nprint('slept')\n'awaited'",
    "asyncio.get_running_loop().is_running()",
    "async def later(n):\n    await asyncio.sleep(0.05)\n    return n\ntask = asyncio.create_task(later(3))",
    "await task",
    "await asyncio.gather(later(1), later(2))",
    "async with asyncio.timeout(1):\n    pass\nasync def gen():\n    for n in range(3):\n        yield n\n[n async for n in gen()]",
    "hits = []\nasyncio.get_event_loop().call_soon(hits.append, 1)\nlen(hits)",
    "await asyncio.sleep(0.01)\nlen(hits)",
    "import threading, time\ndef work():\n    print('in thread')\nt = threading.Thread(target=work); t.start(); t.join()",
    "def late():\n    time.sleep(0.6)\n    print('late')\nt = threading.Thread(target=late); t.start()",
    "time.sleep(1.2)",
    "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n    print(list(pool.map(lambda n: n * n, range(4))))",
    "from IPython.display import display\nt = threading.Thread(target=lambda: display('from thread')); t.start(); t.join()",
    "import multiprocessing as mp\nmp.get_start_method(), threading.current_thread() is threading.main_thread()",
    "def square(n):\n    return n * n\nwith mp.get_context('fork').Pool(2) as pool:\n    print(pool.map(square, range(5)))",
    "p = mp.get_context('fork').Process(target=print, args=('from a fork',)); p.start(); p.join(); time.sleep(.4); p.exitcode",
    "from joblib import Parallel, delayed\nParallel(n_jobs=2)(delayed(square)(n) for n in range(4))",
    "import os\npid = os.fork()\nif not pid:\n    os._exit(5)\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])",
    "class Local:\n    pass\nimport pickle\npickle.loads(pickle.dumps(Local())).__class__ is Local",
]

FIGURES: Cells = [
    "import matplotlib.pyplot as plt\nimport matplotlib\nmatplotlib.get_backend()",
    "plt.plot([1, 2], [3, 4]);",
    "fig, ax = plt.subplots(); ax.bar([1], [2]); print('printed')",
    "fig",
    "plt.figure(figsize=(1, 1)); plt.show(); print('after')",
    "plt.close('all')\nfor n in range(2):\n    plt.figure(figsize=(1, 1))",
    "%matplotlib inline\n%config InlineBackend.figure_formats = ['svg']\nmatplotlib.rcParams['svg.hashsalt'] = 'x'\nplt.figure(figsize=(1, 1)); None",
    code("fig = plt.figure(figsize=(1, 1)); raise ValueError('with a figure open')", "raises-exception"),
    "plt.rcParams['figure.figsize'], plt.get_fignums()",
]


GROUP: Cells = ["print('first')", "raise ExceptionGroup('two rows', [ValueError(1), KeyError('x')])", "never = 1"]
FAILS: Cells = ["print('first')\n'result'", "print('so far'); boom()", "never = 1"]
LEAVES: Cells = ["a = 1", "import sys\nprint('leaving'); sys.exit(1)", "never = 1"]

NOTEBOOKS = {"outputs": OUTPUTS, "magics": MAGICS, "errors": ERRORS, "async": ASYNC, "figures": FIGURES,
             "fails": FAILS, "group": GROUP, "leaves": LEAVES, "widgets": WIDGETS}  # fmt: skip


@pytest.fixture(scope="module")
def executors() -> Iterator[dict[str, LocalExecutor]]:
    made = {kernel: LocalExecutor(kernel=kernel) for kernel in ("forked", "standard")}
    yield made
    for executor in made.values():
        executor.close()


@pytest.fixture(scope="module", params=some(NOTEBOOKS, ("outputs", "magics")))
def executed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, executors: dict[str, LocalExecutor]
) -> dict[str, Executed]:
    place = tmp_path_factory.mktemp(request.param)
    cells = NOTEBOOKS[request.param]
    with ThreadPoolExecutor(len(executors)) as pool:  # beside papermill, which waits most of its time
        ours = {
            kernel: pool.submit(by_step, place / kernel, cells, kernel, executor)
            for kernel, executor in executors.items()
        }
        theirs = {
            "papermill": by_papermill(place / "papermill", cells),
            "engine": by_papermill(place / "engine", cells, "runner"),
        }
        return {**theirs, **{kernel: made.result() for kernel, made in ours.items()}}


def widgets(made: Executed) -> list[Any]:
    """What each widget is and what it holds; they stand by ids that are drawn."""
    kept = made["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    states = [
        (one["model_name"], plain(one["state"].get("outputs")), one["state"].get("value")) for one in kept.values()
    ]
    return sorted(states, key=str)


@pytest.mark.parametrize("other", ["standard", "papermill", "engine"])
def test_a_forked_kernel_leaves_what_the_others_leave(executed: dict[str, Executed], other: str) -> None:
    ours, theirs = executed["forked"], executed[other]
    assert len(ours["cells"]) == len(theirs["cells"])
    for mine, same in zip(ours["cells"], theirs["cells"], strict=True):
        source = "".join(mine["source"])
        assert source == "".join(same["source"])
        assert outputs(mine) == outputs(same), source
        assert mine.get("execution_count") == same.get("execution_count"), source
        assert mine["metadata"]["papermill"]["status"] == same["metadata"]["papermill"]["status"], source
        assert mine["metadata"].get("execution", {}).keys() == same["metadata"].get("execution", {}).keys(), source
    assert widgets(ours) == widgets(theirs)
    assert ours["metadata"]["language_info"] == theirs["metadata"].get(
        "language_info", ours["metadata"]["language_info"]
    )


def test_the_file_is_what_nbformat_writes(executed: dict[str, Executed], tmp_path: Path) -> None:
    again = nbformat.writes(nbformat.from_dict(executed["forked"]), version=4)
    file = tmp_path / "executed.ipynb"
    Saver(file, None)(nbformat.reads(again, as_version=4), True)
    assert file.read_text() == again + "\n"
