"""The study's figures, drawn like the paper's: `python bench/study.py --results RESULTS.md` calls this file.

story.svg is the README's. consistency.svg is the paper's Figure 2, ordering.svg Figure 3, thresholds.svg Table 5 and
methods.svg Tables 1 and 2. Error bars are standard errors over the seeds.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

from vote import InputError

try:
    import matplotlib
except ImportError as error:
    raise InputError("the figures need matplotlib: pip install matplotlib (it is in requirements-dev.txt)") from error
matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

INK, SCPO, GRAY = "#222222", "#c8102e", "#9aa0a6"
COLOURS = {"scpo": SCPO, "semi": "#7b3294", "gold": "#d9a400", "lmsi": "#2c7fb8", "reward": "#4d9221", "coin": GRAY}
LABELS = {"scpo": "ScPO", "semi": "ScPO, semi-supervised †", "gold": "IRPO, gold †", "lmsi": "LMSI",
          "reward": "IRPO, reward model", "coin": "a coin decides"}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "scpo",
         "text.color": INK, "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False,
         "figure.facecolor": "white"}


def mean_and_error(numbers: list[float]) -> tuple[float, float]:
    """In %, over seeds."""
    spread = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0
    return 100 * statistics.fmean(numbers), 100 * spread


def lines_by_method(axes, values: Callable, runs: dict, rounds: dict[str, int]) -> None:
    """Greedy accuracy after each round, a line per method with its name at the end."""
    ends = []
    for setting, last in rounds.items():
        points = [mean_and_error(values(runs[setting], f"M{t}", "greedy")) for t in range(last + 1)]
        means, errors = zip(*points)
        axes.errorbar(range(last + 1), means, errors, color=COLOURS[setting], marker="o", markersize=4, capsize=2,
                      linewidth=2.4 if setting == "scpo" else 1.4, zorder=3 if setting == "scpo" else 2)
        ends.append((means[-1], last, setting))
    place = -100.0
    for height, last, setting in sorted(ends):
        place = max(height, place + 3.2)  # names must not overlap
        axes.text(last + 0.08, place, LABELS[setting], color=COLOURS[setting], va="center",
                  weight="bold" if setting == "scpo" else "normal")
    most = max(rounds.values())
    axes.set(xticks=range(most + 1), xticklabels=[f"M{t}" for t in range(most + 1)], xlim=(-0.15, most + 1.1),
             ylabel="greedy accuracy, %")


def bars_by_round(axes, values: Callable, folders: list[Path], rounds: int) -> None:
    """The share of the k votes that the winner gets, a bar per round (Figure 2)."""
    means, errors = zip(*(mean_and_error(values(folders, f"M{t}", "vote_share")) for t in range(rounds + 1)))
    shades = [GRAY, "#e58a98", "#d8485d", SCPO]
    axes.bar(range(rounds + 1), means, yerr=errors, color=shades[: rounds + 1], width=0.7, capsize=2)
    for t, mean in enumerate(means):
        axes.text(t, mean / 2, f"{mean:.0f}", ha="center", color="white", weight="bold")
    axes.set(xticks=range(rounds + 1), xticklabels=[f"M{t}" for t in range(rounds + 1)], ylim=(0, 100),
             ylabel="vote share of the winner, %")


def stacked_orders(axes, found: list[dict]) -> None:
    """Pairs of a correct and a wrong response to one problem, as two judges order them (Figure 3)."""
    for height, judge in enumerate(("reward", "votes")):
        left = 0.0
        for order, colour in (("wrong", "#d73027"), ("tied", "#d9d9d9"), ("right", "#1a9850")):
            width = 100 * statistics.fmean(f[judge][order] for f in found)
            axes.barh(height, width, left=left, color=colour, label=order if height == 0 else None, height=0.6)
            if width > 4:
                axes.text(left + width / 2, height, f"{width:.1f}", ha="center", va="center",
                          color=INK if order == "tied" else "white")
            left += width
    axes.set(yticks=(0, 1), yticklabels=("reward model", "votes"), xlim=(0, 100), xlabel="share of pairs, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def accuracy_by_threshold(axes, points: dict[float, tuple[list[float], float]], baseline: float) -> None:
    """Greedy accuracy of M1 against τ, with the number of pairs that are left (Table 5)."""
    taus = list(points)
    means, errors = zip(*(mean_and_error(accuracies) for accuracies, _ in points.values()))
    axes.bar([str(tau) for tau in taus], [pairs for _, pairs in points.values()], color="#e3e5e8", width=0.6)
    axes.set(ylabel="pairs", xlabel="τ, share of the k votes")
    right = axes.twinx()
    right.errorbar([str(tau) for tau in taus], means, errors, color=SCPO, marker="o", capsize=2, linewidth=2)
    right.axhline(100 * baseline, color=GRAY, linestyle=":")
    right.text(len(taus) - 0.6, 100 * baseline + 0.4, "M0", color=GRAY, ha="right")
    right.set_ylabel("greedy accuracy of M1, %", color=SCPO)
    right.spines["right"].set_visible(True)


def draw(values: Callable, runs: dict[str, list[Path]], found: list[dict], thresholds: dict, folder: Path) -> None:
    """All figures, as SVG files in `folder`. values(folders, "M1", name): one number per run."""
    folder.mkdir(exist_ok=True)

    def save(name: str, figure) -> None:
        figure.tight_layout()
        figure.savefig(folder / name, metadata={"Date": None})
        pyplot.close(figure)

    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), width_ratios=(2.1, 1))
        lines_by_method(left, values, runs, {"scpo": 3, "gold": 2, "lmsi": 2, "coin": 2})
        left.set_title("Greedy accuracy after each round")
        bars_by_round(right, values, runs["scpo"], 3)
        right.set_title("Agreement of 8 samples")
        save("story.svg", figure)
        figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
        lines_by_method(axes, values, runs, {s: 3 if s == "scpo" else 2 for s in COLOURS})
        save("methods.svg", figure)
        figure, axes = pyplot.subplots(figsize=(3.6, 3))
        bars_by_round(axes, values, runs["scpo"], 3)
        save("consistency.svg", figure)
        figure, axes = pyplot.subplots(figsize=(6.4, 1.9))
        stacked_orders(axes, found)
        save("ordering.svg", figure)
        figure, axes = pyplot.subplots(figsize=(5, 3))
        accuracy_by_threshold(axes, thresholds, statistics.fmean(values(runs["scpo"], "M0", "greedy")))
        save("thresholds.svg", figure)
