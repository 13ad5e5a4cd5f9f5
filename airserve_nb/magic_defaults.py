"""``%config AirServeMagics``: what ``%%serve`` uses where its line says nothing.

The line goes first, then what is set here, then (for the engine) the environment variable ``AIRSERVE_ENGINE``, then
deploy's own defaults. None means: not set here. The names are those of ``deploy()``, and the help of each trait is what
``%config AirServeMagics`` prints.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from traitlets import Bool, Enum, Float, Int
from traitlets.config import Configurable

__all__ = ["ENGINES", "INGRESSES", "ServeDefaults"]

ENGINES = ("ray", "local")
INGRESSES = ("auto", "haproxy", "python")

# What has no meaning for a server in the kernel's own process, and would be refused there.
_OF_RAY = ("num_cpus", "ingress")
_OF_BATCHING = ("max_batch_size", "batch_wait_timeout_s")


class ServeDefaults(Configurable):
    """The settings of the magics, for this kernel; a profile's configuration file may set them too."""

    engine = Enum(
        ENGINES, default_value=None, allow_none=True,
        help="Who hosts a cell: 'ray' or 'local'. None: what AIRSERVE_ENGINE says, else 'ray'. Option --engine.",
    ).tag(config=True)  # fmt: skip
    ingress = Enum(
        INGRESSES, default_value=None, allow_none=True,
        help="Who takes the requests in on Ray: 'haproxy', 'python' or 'auto'. Option --ingress.",
    ).tag(config=True)  # fmt: skip
    max_batch_size = Int(
        None, allow_none=True, min=1, help="Requests in one batch at most. Option --max-batch-size."
    ).tag(config=True)
    batch_wait_timeout_s = Float(
        None, allow_none=True, min=0,
        help="Seconds that a request waits for others while the model is idle. Option --batch-wait-timeout-s.",
    ).tag(config=True)  # fmt: skip
    num_cpus = Float(
        None, allow_none=True, min=0, help="CPUs that Ray reserves for each replica. Option --num-cpus."
    ).tag(config=True)
    port = Int(
        None, allow_none=True, min=1, max=65535,
        help="The HTTP port. None: 8000, or the next free one. Option --port.",
    ).tag(config=True)  # fmt: skip
    quiet = Bool(False, help="Show neither progress nor the service. Option --quiet.").tag(config=True)

    def fill_in(self, args: Namespace, engine_in_use: str | None) -> dict[str, Any]:
        """Return the settings that the line leaves open and that go with what it says.

        Parameters
        ----------
        args
            The line's options.
        engine_in_use
            What hosts the cell when neither the line nor this object says so.
        """
        engine = args.engine or self.engine or engine_in_use
        names = ["engine", "port", *_OF_BATCHING, "num_cpus", "ingress"]
        without = (*(_OF_RAY if engine == "local" else ()), *(_OF_BATCHING if args.no_batching else ()))
        return {
            name: value
            for name in names
            if name not in without
            and getattr(args, name) is None
            and (value := getattr(self, name)) is not None
        }
