"""What ``%%serve`` does with its cell: check the line, run the cell, deploy the predictor that it has made."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from typing import Any

from IPython.core.error import UsageError

from airserve_nb import magic_line
from airserve_nb.magic_defaults import ServeDefaults

__all__ = ["serve"]

# The options that go to deploy() under their own names. One that isn't given isn't passed:
# the defaults have one home, deploy().
_PASSED_ON = (
    "max_batch_size", "batch_wait_timeout_s", "num_replicas", "num_cpus", "route_prefix", "port", "engine",
    "ingress", "address", "share",
)  # fmt: skip
_LOOKED_UP = ("checkpoint", "http_adapter", "example", "predict_kwargs", "checkpoint_kwargs")


def serve(shell: Any, args: Namespace, *, line: str, cell: str, defaults: ServeDefaults) -> Any:
    """Run a cell and deploy what it defines.

    Parameters
    ----------
    shell
        The notebook's shell.
    args
        The line's options.
    line
        The line itself, to remember.
    cell
        The cell's body.
    defaults
        What holds where the line says nothing.

    Returns
    -------
    Service | None
        What is to be displayed.
    """
    from airserve_nb.cell import find_predictor, run_cell
    from airserve_nb.cell_names import Definitions

    namespace = shell.user_ns
    definitions = Definitions.of(cell, shell=shell, namespace=namespace)
    _check(args, namespace, definitions.bound)
    for option in _LOOKED_UP:
        # Before the cell runs, as far as the cell itself doesn't make the value.
        magic_line.look_up(option, getattr(args, option), namespace, made_later=definitions.bound)

    heading = f"%%serve {line}".rstrip()
    run_cell(shell, cell, heading=heading)
    quiet = args.quiet or defaults.quiet

    from airserve_nb import deploying
    from airserve_nb.engines.base import silent
    from airserve_nb.progress import Progress

    def deploy_as_defined_now(progress: Any = silent, *, again: bool = True) -> Any:
        predictor = find_predictor(definitions, namespace, class_name=args.class_name)
        options = _options(args, namespace) | defaults.fill_in(args, os.environ.get("AIRSERVE_ENGINE"))
        if again:
            # What was closed since stays closed.
            options.pop("share", None)
        deployed = deploying.deploy(
            predictor, name=args.name, code=f"{heading}\n{cell}", progress=progress, **options
        )
        deployed._again = deploy_as_defined_now  # noqa: SLF001 - the panel's button does the same
        return deployed

    with contextlib.nullcontext(silent) if quiet else Progress() as progress:
        deployed = deploy_as_defined_now(progress, again=False)
    shell.push({args.name: deployed})
    if args.share is not None:
        _show_how_to_join(deployed)
    return None if quiet else deployed


def _check(args: Namespace, namespace: dict[str, Any], bound: frozenset[str]) -> None:
    if args.name is None and isinstance(args.share, str):
        raise UsageError(f"%%serve needs a name before its options: %%serve {args.share} --share.")
    magic_line.check_service_name(args.name, namespace, bound)
    if args.no_batching and (args.max_batch_size is not None or args.batch_wait_timeout_s is not None):
        raise UsageError("--no-batching goes with neither --max-batch-size nor --batch-wait-timeout-s.")


def _options(args: Namespace, namespace: dict[str, Any]) -> dict[str, Any]:
    """Return what the line says, as arguments of deploy()."""
    options = {
        option: magic_line.look_up(option, getattr(args, option), namespace)
        for option in _LOOKED_UP
        if getattr(args, option) is not None
    }
    options |= {option: getattr(args, option) for option in _PASSED_ON if getattr(args, option) is not None}
    if args.no_batching:
        options["batching"] = False
    if args.no_overlap:
        options["overlap"] = False
    return options


def _show_how_to_join(service: Any) -> None:
    """Show the address and the token of a shared service, this once; without them sharing is of no use."""
    sharing = getattr(service, "sharing", None)
    if sharing is None:
        return
    from IPython.display import display

    display(sharing)
