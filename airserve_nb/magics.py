"""The magics: ``%%serve``, ``%serve``, ``%probe``, and ``%serve_stop``, ``%serve_logs`` and ``%serve_code``.

Each reads its line, looks the names on it up in the notebook, and calls a function that can be called
without any magic. Nothing heavy is imported before a magic runs, so that ``%load_ext`` costs nothing.
"""

from __future__ import annotations

from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, output_can_be_silenced
from IPython.core.magic_arguments import argument, kwds, magic_arguments

from airserve_nb import magic_line, magic_values
from airserve_nb.magic_defaults import ENGINES, INGRESSES, ServeDefaults
from airserve_nb.magic_errors import shown_briefly

__all__ = ["AirServeMagics"]

# IPython puts one % before a usage line, and argparse reads %% as one.
_SERVE_USAGE = """%%serve NAME [--checkpoint NAME] [--http-adapter NAME]
            [--max-batch-size N] [--batch-wait-timeout-s S] [--no-batching]
            [--num-replicas N] [--num-cpus N] [--route-prefix P] [--port N]
            [--engine ray|local] [--ingress auto|haproxy|python]
            [--address A] [--share [HOST]] [--no-overlap]
            [--example NAME] [--class NAME]
            [--predict-kwargs NAME] [--checkpoint-kwargs NAME]
            [--quiet] [--help]"""

_help = argument("--help", action="store_true", help="Show this text and do nothing.")


@magics_class
class AirServeMagics(ServeDefaults, Magics):
    """The magics of airserve_nb. ``%config AirServeMagics`` shows their defaults and sets them."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.previous: dict[tuple[str, str], Any] = {}
        """What the tables of magics held under our names: {(kind, name): magic}."""
        self.matcher: Any = None
        """What completes their lines."""

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
        type=magic_values.count,
        help="Requests in one batch at most; default 10.",
    )
    @argument(
        "--batch-wait-timeout-s",
        metavar="S",
        type=magic_values.seconds,
        help="Seconds that a request waits for others to join it at most; default 0.",
    )
    @argument("--no-batching", action="store_true", help="Call predict for each request alone.")
    @argument("--num-replicas", metavar="N", type=magic_values.count, help="Processes that serve; default 1.")
    @argument(
        "--num-cpus",
        metavar="N",
        type=magic_values.cpus,
        help="CPUs that Ray reserves for each of them; default 0.1.",
    )
    @argument("--route-prefix", metavar="P", type=magic_values.route, help="The URL's path; default /NAME.")
    @argument(
        "--port",
        metavar="N",
        type=magic_values.port,
        help="The HTTP port; default 8000, or the next free one.",
    )
    @argument(
        "--engine",
        metavar="ray|local",
        type=magic_values.Choice(*ENGINES),
        help="Ray Serve (the default), or this kernel's process.",
    )
    @argument(
        "--ingress",
        metavar="auto|haproxy|python",
        type=magic_values.Choice(*INGRESSES),
        help="Who takes the requests in on Ray; default auto, the fastest that can be had.",
    )
    @argument("--address", metavar="A", help="A Ray cluster that runs: auto, or ray://HOST:PORT.")
    @argument(
        "--share",
        metavar="HOST",
        nargs="?",
        const=True,
        help="Open the service to others, who need the token that is shown once; HOST is the address to listen on.",
    )
    @argument(
        "--no-overlap",
        action="store_true",
        help="Let go of the old model before the new one is loaded, where memory is too small for both.",
    )
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
        from airserve_nb.magic_serve import serve

        with shown_briefly():
            return serve(self.shell, args, line=line, cell=cell, defaults=self)

    @magic_arguments("serve")
    @kwds(usage="serve [--warm] [--help]")
    @argument(
        "--warm",
        action="store_true",
        help="Start Ray in the background, so that the first cell finds it there.",
    )
    @_help
    @line_magic("serve")
    def serve_line(self, line: str) -> Any:
        """Show what runs; ``%%serve NAME`` on a cell's first line serves a cell.

        Listed are the services of this kernel and, where it is connected to Ray, all other applications of Ray Serve.
        """
        args = magic_line.parse(type(self).serve_line, line, magic="%serve")
        if args is None:
            return None
        import airserve_nb

        with shown_briefly():
            if args.warm:
                airserve_nb.warm_up(engine=self.engine, port=self.port, ingress=self.ingress or "auto")
                return None
            return airserve_nb.overview()

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

        with shown_briefly():
            deploying.stop(None if args.all else magic_line.running(args.name, magic="%serve_stop").name)

    @magic_arguments("serve_logs")
    @kwds(usage="serve_logs NAME [-n N] [--help]")
    @argument("name", nargs="?", metavar="NAME", help="The service.")
    @argument("-n", metavar="N", type=magic_values.count, default=20, help="Entries a replica; default 20.")
    @_help
    @line_magic("serve_logs")
    def serve_logs(self, line: str) -> None:
        """Print the last log entries of a service, the tracebacks of failed predictions among them."""
        args = magic_line.parse(type(self).serve_logs, line, magic="%serve_logs")
        if args is None:
            return
        with shown_briefly():
            print(magic_line.running(args.name, magic="%serve_logs", elsewhere=True).logs(args.n))  # noqa: T201 - what it is for

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
    @argument(
        "--requests", metavar="N", type=magic_values.count, help="How many requests to send; default 10."
    )
    @argument(
        "--concurrency",
        metavar="N",
        type=magic_values.count,
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

        with shown_briefly():
            target = magic_line.target(args.name, self.shell.user_ns)
            options = {
                name: getattr(args, name)
                for name in ("requests", "concurrency")
                if getattr(args, name) is not None
            }
            return airserve_nb.probe(target, **options)
