"""The command `minimal`: tour, train, sample, data, systems, bench, doctor.

Each command is one function below, which hands what was typed to the package. Modules are imported where they are
used, so that `minimal --help` answers at once. Exit codes: 0 done; 1 failed, with one line that says why
(MINIMAL_DEBUG=1 shows the traceback); 2 called wrongly.
"""

import argparse
import os
import shutil
import sys

from minimal import __version__


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader went away, as in `minimal systems | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("minimal: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("MINIMAL_DEBUG"):
            raise
        print(f"minimal: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


# The commands


def tour(args):
    from minimal import tour

    tour.main(data=args.data, steps=args.steps, seed=args.seed, out=args.out, device=device(args.device))


def train(args):
    from minimal import checkpoints, processes, recipes

    if args.name is None:
        print("\n".join(recipes.names()))
        return
    with processes.joined(device(args.device)) as here:
        path = recipes.run(args.name, out=args.out, steps=args.steps, seed=args.seed, device=here)
        if processes.rank():
            return
    for key, value in checkpoints.header(path)["metrics"].items():
        print(f"{key:40s} {value:.4f}")
    print(f"saved as {path}")


def sample(args):
    import torch

    from minimal import checkpoints, viz
    from minimal.painting import text_of

    model = checkpoints.load(args.name, device(args.device))
    draw = draw_tokens if hasattr(model, "logits") else draw_flow if hasattr(model, "velocity") else None
    if draw is None:
        raise ValueError(f"{args.name} is a {type(model).__name__}; take a model of tokens or a flow to draw from")
    cond = condition(model, args)
    cond = cond if cond is None else cond.to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    if text := text_of(args.name):
        return write(model, args, text, generator=generator)
    if args.prompt is not None:
        raise ValueError(f"{args.name} draws pictures; leave --prompt out")
    images, trace = draw(model, args, cond=cond, generator=generator)
    grid = viz.image_grid(images, ncol=min(args.n, 10))
    grid.figure.savefig(args.out, dpi=160)
    forwards = sum(trace.rows.values()) / args.n
    print(f"{args.n} images in {args.out}: {forwards:.1f} forwards each, {trace.seconds:.2f} s in all")


def condition(model, args):
    """Labels (n,) or captions (n, P) as asked for; None for a model that knows neither."""
    import torch

    classes, words = model.num_classes, getattr(model, "cond_length", 1)
    if args.caption is not None and words == 1:
        raise ValueError(f"{args.name} reads no captions; leave --caption out")
    if words > 1:
        if args.caption is None or args.label is not None:
            raise ValueError(f"{args.name} reads captions: --caption 'a small red circle left of a large blue square'")
        from minimal.data.shapes import encode_captions

        return encode_captions((args.caption,)).expand(args.n, -1)
    if args.label is not None and not 0 <= args.label < classes:
        raise ValueError(f"class {args.label} is not among the {classes} classes of {args.name}")
    if not classes:
        return None
    return torch.arange(args.n) % classes if args.label is None else torch.full((args.n,), args.label)


def write(model, args, text, **options):
    """Print what a model of text writes, behind the prompt if there is one."""
    if args.prompt is not None:
        options["prompt"] = text.encode(args.prompt).to(args.device).expand(args.n, -1)
    drawn = sample_tokens(model, args, **options)
    print("\n\n".join(f"--- {i}\n{text.decode(row)}" for i, row in enumerate(drawn.tokens, start=1)))
    trace = drawn.trace
    print(f"\n{args.n} texts: {sum(trace.rows.values()) / args.n:.1f} forwards each, {trace.seconds:.2f} s in all")


def draw_tokens(model, args, **options):
    """Images of an autoregressive or masked model, by one of its samplers; and their trace."""
    from minimal.painting import painter

    drawn = sample_tokens(model, args, **options)
    return painter(args.name, model, args.device)(drawn.tokens), drawn.trace


def sample_tokens(model, args, **options):
    from minimal.painting import samplers_of
    from minimal.samplers.guidance import Guided

    samplers = samplers_of(model)
    chosen = choose(args.sampler or next(iter(samplers)), samplers, f"{args.name} predicts tokens")
    guided = model if args.guidance_scale == 1 else Guided(model, args.guidance_scale)
    options |= {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    if chosen == "masked":
        options["num_steps"] = args.steps or 8
    return samplers[chosen](guided, args.n, **options)


def draw_flow(model, args, **options):
    """Images of a transport model, by a solver or, where the model can, by crossing intervals; and their trace."""
    from minimal.flows.solvers import SOLVERS
    from minimal.samplers.flow import sample_flow, sample_flow_map

    samplers = ["map", *SOLVERS] if hasattr(model, "average_velocity") else [*SOLVERS]
    chosen = choose(args.sampler or samplers[0], samplers, f"{args.name} moves noise to data")
    if chosen == "map":
        if args.guidance_scale != 1:
            raise ValueError(f"a map cannot be guided; draw from {args.name} with --sampler euler, or without guidance")
        drawn = sample_flow_map(model, args.n, num_steps=args.steps or 1, **options)
    else:
        options = {"guidance_scale": args.guidance_scale, "num_steps": args.steps or 50, "solver": chosen, **options}
        drawn = sample_flow(model, args.n, **options)
    return drawn.images, drawn.trace


def data(args):
    from minimal.data import found
    from minimal.data.source import cache_folder

    rows = found()
    print(
        columns(
            [("name", "kind", "where", "licence")]
            + [(row.name, row.kind, row.where or "missing", row.licence) for row in rows]
        )
    )
    if missing := [(f"  {row.name}", row.missing) for row in rows if row.missing]:
        print(f"\nWhat is missing is downloaded when first used. Or put it into {cache_folder()} yourself:")
        print(columns(missing))


def systems(args):
    from minimal import systems

    chosen = [s for s in systems.load() if args.part in (None, s.part) and args.status in (None, s.status)]
    print(systems.table(chosen, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


def bench(args):
    from minimal import bench

    bench.main(args.job, device(args.device))


def doctor(args):
    from minimal.doctor import report

    print(report())


# Their words


def parser() -> argparse.ArgumentParser:
    about = "How images become tokens, how models learn their distribution, and how to sample from them fast."
    top = argparse.ArgumentParser(prog="minimal", description=about)
    top.add_argument("--version", action="version", version=f"minimal {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(run, text):
        sub = commands.add_parser(run.__name__, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    def seed_and_device(p):
        p.add_argument("--seed", type=int, default=0, help="the same seed gives the same result (default: 0)")
        p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or mps (default: cpu)")

    p = command(tour, "the course in small: train a model on real digits and sample from it in every way")
    p.add_argument("--data", default="digits", help="digits or mnist (default: digits)")
    p.add_argument("--steps", type=positive, help="steps of the live training (default: about a minute's worth)")
    p.add_argument("--out", metavar="PNG", help="where the picture goes (default: tour_DATA.png)")
    seed_and_device(p)

    p = command(train, "repeat a recipe and save its checkpoint; without a name, list the recipes")
    p.add_argument("name", nargs="?", metavar="NAME", help="the recipe")
    p.add_argument("--out", metavar="FILE", help="where the checkpoint goes (default: among the shipped ones)")
    p.add_argument("--steps", type=positive, help="train for fewer or more steps than the recipe says")
    seed_and_device(p)

    p = command(sample, "draw pictures or text from a trained network")
    p.add_argument("name", metavar="NAME", help="a shipped checkpoint (minimal doctor lists them) or a file")
    p.add_argument("--n", type=positive, default=20, help="how many (default: 20)")
    p.add_argument("--class", dest="label", type=int, metavar="ID", help="their class (default: all in turn)")
    p.add_argument("--caption", metavar="TEXT", help="scene_gpt: what to draw, like 'a large green star'")
    p.add_argument("--prompt", metavar="TEXT", help="pydoc_ar and its like: the beginning of what it writes")
    p.add_argument("--guidance-scale", type=float, default=1.0, help="above 1: more typical of the class (default: 1)")
    p.add_argument(
        "--sampler", help="tokens: cached, jacobi, lookahead ...; flows: euler, heun, map ... (a wrong one lists them)"
    )
    p.add_argument("--steps", type=positive, help="flows (default: 50, or 1 for a map) and masked models (default: 8)")
    p.add_argument("--temperature", type=float, default=1.0, help="tokens: 0 takes the likeliest (default: 1)")
    p.add_argument("--top-k", type=positive, help="tokens: only among the k likeliest")
    p.add_argument("--top-p", type=float, help="tokens: only among the likeliest that hold this share")
    p.add_argument("--out", metavar="PNG", default="sample.png", help="where the picture goes (default: sample.png)")
    seed_and_device(p)

    command(data, "list the data sets: where they are, or what is missing")

    p = command(systems, "the map of the field: every published system that the course covers")
    p.add_argument("--part", type=int, choices=range(9), help="only those of one part")
    p.add_argument("--status", choices=("planned", "done"), help="only those")

    p = command(bench, "measure our samplers beside other libraries")
    p.add_argument("job", nargs="?", metavar="JOB", default="all", help="what to measure: decode, ... (default: all)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or mps (default: cpu)")

    command(doctor, "versions, devices, data and what is missing, as a block for a bug report")
    return top


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def choose(sampler: str, samplers, why: str) -> str:
    """The sampler asked for, if there is one of that name."""
    if sampler not in samplers:
        raise ValueError(f"{why}; its samplers are {', '.join(samplers)}, not {sampler}")
    return sampler


def device(name: str) -> str:
    """The name of a device, if it is here."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return name


def columns(rows: list[tuple[str, ...]]) -> str:
    """Rows of words as aligned columns; the last one is ragged."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows)
