"""A real JupyterLab in a real Chromium: what a user sees, not what we sent.

JupyterLab runs from the environment that runs the tests, in folders of its own, and hands its application object
to the page. So the driver asks JupyterLab's own commands to run cells and awaits their promises, instead of
guessing from the outside when a cell has ended. Each fixture, once closed, proves that its processes are gone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import airserve_nb

ROOT = Path(airserve_nb.__file__).parent.parent
# On a loaded machine JupyterLab takes a quarter of a minute to start, a kernel as long.
PATIENCE_S = 90
# What is expected is awaited; on a loaded machine, for longer than playwright's 5 s.
expect.set_options(timeout=20_000)
CHROMIUM_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    # All cells are in the page, whatever part of it is seen.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    # A file changes when a test says so.
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}

OPENED = """async () => {
  await window.jupyterapp.restored;
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.revealed;
}"""
KERNEL_READY = """async () => {
  const session = window.jupyterapp.shell.currentWidget.context.sessionContext;
  await session.ready;
  await session.session.kernel.info;
}"""
COMMAND = "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => null)"
SET_SOURCE = """([index, source]) =>
  window.jupyterapp.shell.currentWidget.content.widgets[index].model.sharedModel.setSource(source)"""
SELECT = "(index) => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = index; }"
RESTART = (
    "() => window.jupyterapp.shell.currentWidget.context.sessionContext.restartKernel().then(() => null)"
)
SHUT_DOWN = "() => window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()"


# -- processes --------------------------------------------------------------------------------------


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _naming(folder: Path) -> set[psutil.Process]:
    """Find the processes, whoever their parent is, that have ``folder`` in their command line."""
    return {
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    }


def prove_gone(processes: set[psutil.Process], *, timeout_s: float = 15) -> None:
    """Wait until processes have ended."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"still there after {timeout_s:g} s: {left}"


# -- JupyterLab -------------------------------------------------------------------------------------


class Lab:
    """A JupyterLab server: where it answers, its secret, and the folder it shows."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "notebooks"
        self.token = secrets.token_hex(16)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        settings = home / "settings"
        for folder in (self.folder, settings):
            folder.mkdir()
        (settings / "overrides.json").write_text(json.dumps(SETTINGS))

    def command(self) -> list[str]:
        port = self.url.rpartition(":")[2]
        return [
            sys.executable,
            *("-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
            *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.folder}",
            f"--LabApp.app_settings_dir={self.home / 'settings'}",
            f"--LabApp.user_settings_dir={self.home / 'user'}",
            f"--LabApp.workspaces_dir={self.home / 'workspaces'}",
        ]

    def environment(self) -> dict[str, str]:
        """Return an environment in which nothing of the user's own Jupyter takes part."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {
            name: str(self.home / folder)
            for name, folder in (
                ("JUPYTER_CONFIG_DIR", "config"),
                ("JUPYTER_DATA_DIR", "data"),
                ("JUPYTER_RUNTIME_DIR", "runtime"),
                ("IPYTHONDIR", "ipython"),
            )
        }
        return {**os.environ, **own, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": os.pathsep.join(paths)}

    def wait_until_up(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert process.poll() is None, log.read_text()[-3_000:]
            try:
                urllib.request.urlopen(f"{self.url}/api", timeout=5).close()  # noqa: S310 - our own server
            except OSError:
                assert time.monotonic() < deadline, log.read_text()[-3_000:]
                time.sleep(0.1)
            else:
                return


@contextmanager
def running_lab() -> Iterator[Lab]:
    """Start JupyterLab; at the end prove that it and all its kernels are gone, and remove its folders."""
    # A short path: kernels' sockets and Ray's lie below it.
    home = Path(tempfile.mkdtemp(prefix="lab-"))
    lab, log = Lab(home), home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            lab.command(), cwd=home, env=lab.environment(), stdout=output, stderr=output
        )
        try:
            lab.wait_until_up(process, log)
            yield lab
        finally:
            family = {psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)}
            process.terminate()
            try:
                process.wait(15)
                prove_gone(family | _naming(home))
            finally:
                for one in family:
                    if one.is_running():
                        one.kill()
                process.wait(15)
                shutil.rmtree(home, ignore_errors=True)


# -- a notebook in the browser ------------------------------------------------------------------------


class Notebook:
    """A notebook that is open in JupyterLab.

    Parameters
    ----------
    lab
        The server.
    page
        An empty page.
    path
        The notebook's file.
    """

    def __init__(self, lab: Lab, page: Page, path: Path) -> None:
        self.page = page
        self.path = path
        self.errors: list[str] = []
        """What the browser's console reported as errors, and what scripts raised."""
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("console", lambda each: self.errors.append(each.text) if each.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{lab.url}/doc/tree/{path.relative_to(lab.folder)}?token={lab.token}&reset")
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.context")
        self.page.evaluate(OPENED)

    def command(self, name: str, **args: Any) -> None:
        """Execute one of JupyterLab's commands, and wait for its end."""
        self.page.evaluate(COMMAND, [name, args])

    def wait_for_kernel(self) -> None:
        self.page.evaluate(KERNEL_READY)

    def run_all(self) -> None:
        """Run all cells as the menu does, and wait until the last that runs has ended."""
        self.wait_for_kernel()
        self.command("notebook:run-all-cells")

    def start_all(self) -> None:
        """Run all cells, without waiting."""
        self.wait_for_kernel()
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def start(self, index: int) -> None:
        """Run one cell, without waiting."""
        self.page.evaluate(SELECT, index)
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-cell'); }")

    def restart_kernel(self) -> None:
        self.page.evaluate(RESTART)

    def reload(self) -> None:
        """Load the page anew."""
        self.page.reload()
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.context")
        self.page.evaluate(OPENED)

    def write(self, index: int, source: str) -> None:
        """Replace the code of a cell."""
        self.page.evaluate(SET_SOURCE, [index, source])

    def clear(self) -> None:
        self.command("notebook:clear-all-cell-outputs")

    def save(self) -> Any:
        """Save the notebook and return what the file holds."""
        self.command("docmanager:save")
        return nbformat.read(self.path, as_version=4)

    def set_theme(self, theme: str) -> None:
        """Change to JupyterLab's ``Light`` or ``Dark`` theme."""
        self.command("apputils:change-theme", theme=f"JupyterLab {theme}")
        light = "true" if theme == "Light" else "false"
        # The body itself has no height; and while a theme loads, a splash covers the page.
        self.page.wait_for_selector(f"body[data-jp-theme-light='{light}']", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def cell(self, index: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def output(self, index: int) -> Locator:
        """Return what is shown below a cell."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    def prompt(self, index: int) -> str:
        """Return ``[3]:`` of a cell that has run, ``[ ]:`` of one that has not."""
        return str(self.cell(index).locator(".jp-InputPrompt").inner_text()).strip()

    def stderr(self) -> Locator:
        """Return all that was written to stderr."""
        return self.page.locator("[data-mime-type='application/vnd.jupyter.stderr']")

    def shut_kernel_down(self) -> None:
        self.page.evaluate(SHUT_DOWN)


OpenNotebook = Callable[..., Notebook]


# -- fixtures ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with running_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium; for no longer than a module, as playwright's event loop runs in this thread."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt install chromium)")
    before = _descendants()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_OPTIONS))
        yield browser
        family = _descendants() - before
        browser.close()
    # The server and its kernels may be among the descendants: they have a proof of their own.
    prove_gone({one for one in family if "chrom" in _name(one) or "node" in _name(one)})


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


@pytest.fixture(scope="module")
def open_notebook(lab: Lab, chromium: Browser) -> Iterator[OpenNotebook]:
    """Open notebooks, each in a page of its own; at the end their kernels are shut down."""
    opened: list[Notebook] = []

    def open_(
        cells: Sequence[str] | Path, *, width: int = 1100, height: int = 1200, scale: float = 1
    ) -> Notebook:
        path = cells if isinstance(cells, Path) else lab.folder / f"{secrets.token_hex(4)}.ipynb"
        if not isinstance(cells, Path):
            write_notebook(path, cells)
        page = chromium.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        opened.append(Notebook(lab, page, path))
        return opened[-1]

    yield open_
    for notebook in opened:
        notebook.page.close()
    _end_kernels(lab)


@pytest.fixture(scope="session")
def axe(request: pytest.FixtureRequest) -> str:
    """Return the script of axe-core, which checks a page's accessibility; from npm, kept in pytest's cache."""
    npm = shutil.which("npm")
    folder = request.config.cache.mkdir("axe")
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        if npm is None:
            pytest.skip("needs npm, to install axe-core")
        done = subprocess.run(  # noqa: S603 - a tool of the system
            [npm, "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if not script.exists():
            pytest.skip(f"npm could not install axe-core: {done.stderr[-200:]}")
    return script.read_text(encoding="utf-8")


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """Make a notebook's file from the code of its cells."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = [nbformat.v4.new_code_cell(source.strip("\n")) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)


def _end_kernels(lab: Lab) -> None:
    """End all kernels through the server, and prove it."""
    kernels = _naming(lab.home / "runtime")
    headers = {"Authorization": f"token {lab.token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{lab.url}/api/kernels", headers=headers)) as answer:  # noqa: S310 - our own server
        ids = [each["id"] for each in json.load(answer)]
    for kernel_id in ids:
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{lab.url}/api/kernels/{kernel_id}", headers=headers, method="DELETE"
        )
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310 - our own server
    prove_gone(kernels)
