"""The command line. Imports of the stages happen inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gradsift.errors import ConfigError, UserError
from gradsift.machine import machine_fault, wait_politely

STAGES = ("encode", "warmup", "features", "score", "select", "train", "evaluate")
STAGE_HELP = {
    "encode": "read and encode the pool and the targets",
    "warmup": "train the LoRA checkpoints that gradients are taken at",
    "features": "projected gradients of every pool row and target example",
    "score": "influence of every pool row on every target",
    "select": "write the best rows, in the schema they came in",
    "train": "train a model on the selected rows, from the base",
    "evaluate": "answer the targets' held-out questions with the trained models",
}
USER_FAULT, OWN_FAULT = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 2 the user's input or machine is wrong, 1 anything else."""
    options = _options(arguments)
    _print_anything()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    _quiet_libraries()
    wait_politely()
    try:
        return int(options.command(options))
    except UserError as error:
        return _refuse(options, str(error))
    except KeyboardInterrupt:
        return _refuse(options, "stopped; run the same command again to go on", status=130)
    except Exception as error:
        fault = machine_fault(error)
        if fault is not None:
            return _refuse(options, fault)
        if options.debug:
            raise
        print(
            f"gradsift: {type(error).__name__}: {error}\n(a fault of ours: --debug shows where)",
            file=sys.stderr,
        )
        return OWN_FAULT


def _print_anything() -> None:
    """What the terminal's encoding lacks is printed by its number, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; overrides may stand before and after the other options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    overrides = [text for text in rest if "=" in text and not text.startswith("-")]
    unknown = [text for text in rest if text not in overrides]
    if unknown or (overrides and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    if overrides:
        options.overrides += overrides
    return options


def _refuse(options: argparse.Namespace, message: str, status: int = USER_FAULT) -> int:
    if options.debug and status == USER_FAULT:
        raise
    print(f"gradsift: {' '.join(message.split())}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    from gradsift import __version__

    parser = argparse.ArgumentParser(
        prog="gradsift",
        description="Select the few percent of an instruction pool that teach a model the skill you need (LESS).",
    )
    parser.add_argument("--version", action="version", version=f"gradsift {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = _config_command(
        commands, "run", "all stages, from the pool to the trained model's metrics; finished work is skipped"
    )
    run.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to do")
    run.set_defaults(command=_run)
    for name in STAGES:
        stage = _config_command(commands, name, STAGE_HELP[name])
        stage.set_defaults(command=_stage, stage=name)
    compare = _config_command(
        commands, "compare", "methods × targets × seeds, each trained and evaluated; finished cells are skipped"
    )
    compare.add_argument(
        "--table",
        action="store_true",
        help="the table of the cells that are done and nothing else: no data, no models",
    )
    compare.set_defaults(command=_compare)
    check = _config_command(
        commands, "check", "measure the method on your own model, pool and targets; --influence is needed for now"
    )
    check.add_argument(
        "--influence",
        action="store_true",
        help="real optimizer steps against predicted influence: correlations, projections, checkpoints, epsilon",
    )
    check.set_defaults(command=_check)
    demo = commands.add_parser("demo", help="the method against its rivals, on a small model and pool, without network")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything it makes")
    demo.add_argument(
        "--targets", default="", help="all (three of them), or skills with commas between; one without it"
    )
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")
    demo.set_defaults(command=_demo)
    _store_commands(commands.add_parser("store", help="look into a feature store, or make it smaller"))
    return parser


def _store_commands(store: argparse.ArgumentParser) -> None:
    actions = store.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("info", help="what its rows mean").set_defaults(command=_store_info)
    actions.add_parser("verify", help="whether it is whole").set_defaults(command=_store_verify)
    quantize = actions.add_parser("quantize", help="write it again at fewer bits a value")
    quantize.add_argument("--bits", type=int, choices=(8, 4, 1), default=8, help="bits of a value (default: 8)")
    quantize.add_argument("--out", type=Path, help="folder of the new store (default: PATH-int8 beside it)")
    quantize.set_defaults(command=_store_quantize)
    for action in actions.choices.values():
        action.add_argument("path", type=Path, metavar="PATH")
        action.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _config_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_text, description=help_text)
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. features.projection.dim=4096")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _quiet_libraries() -> None:
    """Their progress bars and advice would hide our own lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("httpx", "datasets", "filelock", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _run(options: argparse.Namespace) -> int:
    from gradsift.config import load_config
    from gradsift.pipeline import run

    print(run(load_config(options.config, options.overrides), until=options.until))
    return 0


def _stage(options: argparse.Namespace) -> int:
    from gradsift.config import load_config
    from gradsift.pipeline import run

    print(run(load_config(options.config, options.overrides), only=options.stage))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from gradsift.comparison import compare, finished_table
    from gradsift.config import load_config

    make = finished_table if options.table else compare
    print(make(load_config(options.config, options.overrides)))
    return 0


def _check(options: argparse.Namespace) -> int:
    if not options.influence:
        raise ConfigError("check: say what: --influence measures the method; the dry run without it isn't there yet")
    from gradsift.config import load_config
    from gradsift.pipeline import check_influence

    print(check_influence(load_config(options.config, options.overrides)))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from gradsift.demo import demo, named_targets

    print(demo(options.out, named_targets(options.targets)))
    return 0


def _store_info(options: argparse.Namespace) -> int:
    import json

    from gradsift.store import FeatureStore

    store = FeatureStore(options.path)
    meaning = dict(store.meaning)
    if "parameters" in meaning:
        meaning["parameters"] = f"{len(meaning['parameters'])} LoRA matrices"
    print(json.dumps({"num_rows": store.num_rows, **meaning}, indent=1))
    return 0


def _store_verify(options: argparse.Namespace) -> int:
    from gradsift.store import FeatureStore

    store = FeatureStore(options.path)
    store.verify()
    print(f"{options.path}: {store.num_rows} rows in {len(store.manifest['shards'])} shards, all whole")
    return 0


def _store_quantize(options: argparse.Namespace) -> int:
    from gradsift.store import FeatureStore, quantize

    path = options.path.resolve()
    folder = options.out or path.with_name(f"{path.name}-int{options.bits}")
    store = quantize(FeatureStore(options.path), options.bits, folder)
    print(f"{folder}: {store.num_rows} rows at {options.bits} {'bit' if options.bits == 1 else 'bits'} a value")
    return 0


if __name__ == "__main__":
    sys.exit(main())
