"""The magics: ``%%serve``, ``%serve``, ``%probe``, and ``%serve_stop``, ``%serve_logs`` and ``%serve_code``.

Each reads its line, looks the names on it up in the notebook, and calls a function that can be called
without any magic. Nothing heavy is imported before a magic runs, so that ``%load_ext`` costs nothing.
"""

from __future__ import annotations

import contextlib
import functools
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, output_can_be_silenced
from IPython.core.magic_arguments import argument, kwds, magic_arguments

from airserve_nb import magic_line
from airserve_nb.errors import AirServeError

__all__ = ["AirServeMagics", "load", "unload"]

# IPython puts one % before a usage line, and argparse reads %% as one.
_SERVE_USAGE = """%%serve NAME [--checkpoint NAME] [--http-adapter NAME]
            [--max-batch-size N] [--batch-wait-timeout-s S] [--no-batching]
            [--num-replicas N] [--num-cpus N] [--route-prefix P] [--port N]
            [--engine ray|local] [--example NAME] [--class NAME]
            [--predict-kwargs NAME] [--checkpoint-kwargs NAME]
            [--quiet] [--help]"""

# The options that go to deploy() under their own names. One that isn't given isn't passed:
# the defaults have one home, deploy().
_PASSED_ON = (
    "max_batch_size", "batch_wait_timeout_s", "num_replicas", "num_cpus", "route_prefix", "port", "engine",
)  # fmt: skip
_LOOKED_UP = ("checkpoint", "http_adapter", "example", "predict_kwargs", "checkpoint_kwargs")

# With its sentence, an error of a cell's deployment stays within ten lines.
MOST_FRAME_LINES = 8

_help = argument("--help", action="store_true", help="Show this text and do nothing.")


@magics_class
class AirServeMagics(Magics):
    """The magics of airserve_nb."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.previous: dict[tuple[str, str], Any] = {}
        """What the tables of magics held under our names: {(kind, name): magic}."""

    @output_can_be_silenced
    @magic_arguments("serve")
    @kwds(usage=_SERVE_USAGE)
    @argument(
        "name", nargs="?", metavar="NAME", help="The service, its route and the variable that holds it."
    )
    @argument("--checkpoint", metavar="NAME", help="The checkpoint to load; none means an empty one.")
    @argument("--http-adapter", metavar="NAME", help="Turns a request into the model's input.")
    @argument(
        "--max-batch-size",
        metavar="N",
        type=magic_line.count,
        help="Requests in one batch at most; default 10.",
    )
    @argument(
        "--batch-wait-timeout-s",
        metavar="S",
        type=magic_line.seconds,
        help="Seconds that a request waits for others to join it at most; default 0.",
    )
    @argument("--no-batching", action="store_true", help="Call predict for each request alone.")
    @argument("--num-replicas", metavar="N", type=magic_line.count, help="Processes that serve; default 1.")
    @argument(
        "--num-cpus",
        metavar="N",
        type=magic_line.cpus,
        help="CPUs that Ray reserves for each of them; default 0.1.",
    )
    @argument("--route-prefix", metavar="P", type=magic_line.route, help="The URL's path; default /NAME.")
    @argument(
        "--port", metavar="N", type=magic_line.port, help="The HTTP port; default 8000, or the next free one."
    )
    @argument("--engine", choices=("ray", "local"), help="Ray Serve (the default), or this kernel's process.")
    @argument("--example", metavar="NAME", help="A request body that shows how to call the service.")
    @argument(
        "--class", dest="class_name", metavar="NAME", help="Which predictor, where the cell defines several."
    )
    @argument("--predict-kwargs", metavar="NAME", help="A dict that every call of predict is given.")
    @argument("--checkpoint-kwargs", metavar="NAME", help="A dict that from_checkpoint is given.")
    @argument("--quiet", action="store_true", help="Show neither progress nor the service.")
    @_help
    @cell_magic("serve")
    def serve_cell(self, line: str, cell: str) -> Any:
        """Run the cell and serve the predictor that it defines.

        The predictor is the Predictor class that the cell defines, or its function ``predict``,
        a batch in and a batch out, whose annotation picks the HTTP adapter. NAME is bound
        to the Service. Values called NAME are names or dotted names of the notebook, such as
        result.checkpoint. Running the cell again replaces the deployment. A semicolon after
        the cell's last expression hides the service's display.
        """
        args = magic_line.parse(type(self).serve_cell, line, magic="%%serve")
        if args is None:
            return None
        with _shown_briefly():
            return self._serve(args, line, cell)

    def _serve(self, args: Namespace, line: str, cell: str) -> Any:
        from airserve_nb.cell import find_predictor, run_cell
        from airserve_nb.cell_names import Definitions

        namespace = self.shell.user_ns
        definitions = Definitions.of(cell, shell=self.shell, namespace=namespace)
        magic_line.check_service_name(args.name, namespace, definitions.bound)
        if args.no_batching and (args.max_batch_size is not None or args.batch_wait_timeout_s is not None):
            raise UsageError("--no-batching goes with neither --max-batch-size nor --batch-wait-timeout-s.")
        for option in _LOOKED_UP:
            # Before the cell runs, as far as the cell itself doesn't make the value.
            magic_line.look_up(option, getattr(args, option), namespace, made_later=definitions.bound)

        heading = f"%%serve {line}".rstrip()
        run_cell(self.shell, cell, heading=heading)

        from airserve_nb import deploying
        from airserve_nb.engines.base import silent
        from airserve_nb.progress import Progress

        def deploy_as_defined_now(progress: Any = silent) -> Any:
            predictor = find_predictor(definitions, namespace, class_name=args.class_name)
            options = {
                option: magic_line.look_up(option, getattr(args, option), namespace)
                for option in _LOOKED_UP
                if getattr(args, option) is not None
            }
            options |= {
                option: getattr(args, option) for option in _PASSED_ON if getattr(args, option) is not None
            }
            if args.no_batching:
                options["batching"] = False
            deployed = deploying.deploy(
                predictor, name=args.name, code=f"{heading}\n{cell}", progress=progress, **options
            )
            deployed._again = deploy_as_defined_now  # noqa: SLF001 - the panel's button does the same
            return deployed

        with contextlib.nullcontext(silent) if args.quiet else Progress() as progress:
            deployed = deploy_as_defined_now(progress)
        self.shell.push({args.name: deployed})
        return None if args.quiet else deployed

    @magic_arguments("serve")
    @kwds(usage="serve [--help]")
    @_help
    @line_magic("serve")
    def serve_line(self, line: str) -> Any:
        """Show what this kernel serves; ``%%serve NAME`` on a cell's first line serves a cell."""
        args = magic_line.parse(type(self).serve_line, line, magic="%serve")
        if args is None:
            return None
        from airserve_nb import deploying
        from airserve_nb.display import ServiceList, ServiceView

        with _shown_briefly():
            views = tuple(ServiceView.of(each, ask=True) for each in deploying.services().values())
        return ServiceList(views)

    @magic_arguments("serve_stop")
    @kwds(usage="serve_stop NAME | --all [--help]")
    @argument("name", nargs="?", metavar="NAME", help="The service to end.")
    @argument("--all", action="store_true", help="End all that this kernel serves.")
    @_help
    @line_magic("serve_stop")
    def serve_stop(self, line: str) -> None:
        """End a service; what it recorded can still be read."""
        args = magic_line.parse(type(self).serve_stop, line, magic="%serve_stop")
        if args is None:
            return
        if (args.name is None) != args.all:
            raise UsageError("%serve_stop needs either a name, as in %serve_stop adder, or --all.")
        from airserve_nb import deploying

        with _shown_briefly():
            deploying.stop(None if args.all else magic_line.running(args.name, magic="%serve_stop").name)

    @magic_arguments("serve_logs")
    @kwds(usage="serve_logs NAME [-n N] [--help]")
    @argument("name", nargs="?", metavar="NAME", help="The service.")
    @argument("-n", metavar="N", type=magic_line.count, default=20, help="Entries a replica; default 20.")
    @_help
    @line_magic("serve_logs")
    def serve_logs(self, line: str) -> None:
        """Print the last log entries of a service, the tracebacks of failed predictions among them."""
        args = magic_line.parse(type(self).serve_logs, line, magic="%serve_logs")
        if args is None:
            return
        with _shown_briefly():
            print(magic_line.running(args.name, magic="%serve_logs").logs(args.n))  # noqa: T201 - what it is for

    @magic_arguments("serve_code")
    @kwds(usage="serve_code NAME [--help]")
    @argument("name", nargs="?", metavar="NAME", help="The service.")
    @_help
    @line_magic("serve_code")
    def serve_code(self, line: str) -> None:
        """Print the cell that defined the version that serves."""
        args = magic_line.parse(type(self).serve_code, line, magic="%serve_code")
        if args is None:
            return
        service = magic_line.running(args.name, magic="%serve_code")
        if service.code is None:
            raise UsageError(
                f"{args.name} was not made by a cell of this notebook, so there is no code of it."
            )
        print(service.code)  # noqa: T201 - what it is for

    @magic_arguments("probe")
    @kwds(usage="probe NAME [--requests N] [--concurrency N] [--help]")
    @argument("name", nargs="?", metavar="NAME", help="A service, or a URL.")
    @argument("--requests", metavar="N", type=magic_line.count, help="How many requests to send; default 10.")
    @argument(
        "--concurrency",
        metavar="N",
        type=magic_line.count,
        help="How many requests are under way at once at most; default: all of them.",
    )
    @_help
    @line_magic("probe")
    def probe_line(self, line: str) -> Any:
        """Send requests at once and show which of them shared a batch."""
        args = magic_line.parse(type(self).probe_line, line, magic="%probe")
        if args is None:
            return None
        import airserve_nb

        with _shown_briefly():
            target = magic_line.target(args.name, self.shell.user_ns)
            options = {
                name: getattr(args, name)
                for name in ("requests", "concurrency")
                if getattr(args, name) is not None
            }
            return airserve_nb.probe(target, **options)


@contextlib.contextmanager
def _shown_briefly() -> Iterator[None]:
    """Show our own errors as their sentence: the frames of a magic tell its user nothing."""
    try:
        yield
    except AirServeError as error:
        if not hasattr(error, "_render_traceback_"):
            lines = [*_users_frames(error), f"{type(error).__name__}: {error}"]
            error._render_traceback_ = functools.partial(list, lines)  # type: ignore[attr-defined]  # IPython's own protocol
        raise


def _users_frames(error: AirServeError) -> list[str]:
    """Return the frames of the user's code that failed in a replica: the last few, which say where."""
    return str(getattr(error, "frames", "")).splitlines()[-MOST_FRAME_LINES:]


def load(ipython: Any) -> None:
    """Register the magics; loading twice does nothing more."""
    if _registered(ipython) is not None:
        return
    magics = AirServeMagics(ipython)
    tables = ipython.magics_manager.magics
    magics.previous = {
        (kind, name): tables[kind].get(name) for kind in magics.magics for name in magics.magics[kind]
    }
    ipython.register_magics(magics)


def unload(ipython: Any) -> None:
    """Remove the magics and put back what they replaced; services go on running."""
    magics = _registered(ipython)
    if magics is None:
        return
    tables = ipython.magics_manager.magics
    for (kind, name), previous in magics.previous.items():
        if getattr(tables[kind].get(name), "__self__", None) is not magics:
            continue  # someone registered another one since: it stays
        if previous is None:
            del tables[kind][name]
        else:
            tables[kind][name] = previous
    del ipython.magics_manager.registry[AirServeMagics.__name__]


def _registered(ipython: Any) -> Any:
    return ipython.magics_manager.registry.get(AirServeMagics.__name__)
