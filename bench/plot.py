"""Draw a run: the scores of each round, and what training did in each.

    python bench/plot.py runs/toy                  # runs/toy/plot.svg
    python bench/plot.py runs/toy --out plot.png
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.cli import ArgumentParser, InputError, run_script
from common.files import read_json, read_jsonl

METRICS = {  # of log.jsonl, a panel each
    "loss": ("loss",),
    "rewards": ("chosen_reward", "rejected_reward"),
    "log-probs, nats": ("chosen_logp", "rejected_logp"),
    "gradient norm": ("grad_norm",),
}
SCORES = {"greedy": "greedy", "self_consistency": "self-consistency", "vote_share": "vote share"}


def draw(run: Path, out: Path) -> None:
    from bench.figures import STYLE, pyplot

    results, logs = read_json(run / "results.json"), {}
    for folder in sorted(run.glob("M*")):
        if (folder / "log.jsonl").exists():
            logs[folder.name] = read_jsonl(folder / "log.jsonl")
    if not results and not logs:
        raise InputError(f"{run}: has neither results.json nor M*/log.jsonl; give a run's folder")
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, 1 + len(METRICS), figsize=(3.2 * (1 + len(METRICS)), 3))
        for score, label in SCORES.items():
            models = [name for name in results if results[name].get(score) is not None]
            axes[0].plot(models, [100 * results[name][score] for name in models], "o-", label=label)
        axes[0].set_title("test problems, %")
        axes[0].legend()
        for panel, (title, names) in zip(axes[1:], METRICS.items()):
            draw_metrics(panel, logs, names)
            panel.set_title(title)
            panel.set_xlabel("step")
        figure.tight_layout()
        figure.savefig(out)
        pyplot.close(figure)


def draw_metrics(panel, logs: dict[str, list[dict]], names: tuple[str, ...]) -> None:
    """A line per round; the rejected side is dashed. Rounds follow each other on the axis."""
    start = 0
    for number, (model, log) in enumerate(logs.items()):
        steps = range(start, start + len(log))
        for name, style in zip(names, ("-", "--")):
            if name in log[0]:  # LMSI rejects nothing
                label = model if len(names) == 1 else f"{model} {name.partition('_')[0]}"
                panel.plot(steps, [line[name] for line in log], style, color=f"C{number}",
                           label=label)
        start += len(log)
    panel.legend()


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--out", help="file for the figure (default: plot.svg in the run's folder)")
    args = parser.parse_args()
    out = Path(args.out or Path(args.run) / "plot.svg")
    draw(Path(args.run), out)
    print(f"{out}: written")


if __name__ == "__main__":
    run_script(main)
