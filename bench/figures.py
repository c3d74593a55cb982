"""The figures of README.md and RESULTS.md, drawn like the paper's by `python bench/report.py`.

story.svg is the README's. consistency.svg is the paper's Figure 2, ordering.svg Figure 3,
thresholds.svg Table 5 and methods.svg Tables 1 and 2. Bars are standard errors over the seeds.
"""

import statistics
from pathlib import Path

from bench.report import THRESHOLDS, Lines, judges_of, values
from common.cli import InputError

try:
    import matplotlib
except ImportError as error:
    advice = "pip install matplotlib (it is in requirements-dev.txt)"
    raise InputError(f"figures need matplotlib: {advice}") from error
matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, RED, GRAY = "#222222", "#c8102e", "#9aa0a6"
COLORS = {"scpo": RED, "semi": "#7b3294", "gold": "#d9a400", "lmsi": "#2c7fb8",
          "reward": "#4d9221", "coin": GRAY}
LABELS = {"scpo": "ScPO", "semi": "ScPO, semi-supervised †", "gold": "IRPO, gold †",
          "lmsi": "LMSI", "reward": "IRPO, reward model", "coin": "a coin decides"}
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
         "svg.hashsalt": "scpo", "text.color": INK, "axes.titlesize": 10,
         "axes.titlelocation": "left", "legend.frameon": False, "figure.facecolor": "white"}


def draw(lines: Lines, folder: Path) -> None:
    """All figures of a study, as SVG files in `folder`."""
    folder.mkdir(exist_ok=True)
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), width_ratios=(2.1, 1))
        lines_by_method(left, lines, {"scpo": 3, "gold": 2, "lmsi": 2, "coin": 2})
        left.set_title("Greedy accuracy after each round")
        bars_by_round(right, lines, 3)
        right.set_title("Agreement of 8 samples")
        save(figure, folder / "story.svg")
        figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
        lines_by_method(axes, lines, {name: 3 if name == "scpo" else 2 for name in COLORS})
        save(figure, folder / "methods.svg")
        figure, axes = pyplot.subplots(figsize=(3.6, 3))
        bars_by_round(axes, lines, 3)
        save(figure, folder / "consistency.svg")
        figure, axes = pyplot.subplots(figsize=(6.4, 1.9))
        stacked_orders(axes, judges_of(lines))
        save(figure, folder / "ordering.svg")
        figure, axes = pyplot.subplots(figsize=(5, 3))
        accuracy_by_threshold(axes, lines)
        save(figure, folder / "thresholds.svg")


def save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def mean_and_error(numbers: list[float]) -> tuple[float, float]:
    """In %, over seeds."""
    error = 0.0
    if len(numbers) > 1:
        error = statistics.stdev(numbers) / len(numbers) ** 0.5
    return 100 * statistics.fmean(numbers), 100 * error


def lines_by_method(axes: Axes, lines: Lines, rounds: dict[str, int]) -> None:
    """Greedy accuracy after each round, a line per method with its name at the end."""
    ends = []
    for setting, last in rounds.items():
        means, errors = [], []
        for t in range(last + 1):
            mean, error = mean_and_error(values(lines, setting, f"M{t}", "greedy"))
            means.append(mean)
            errors.append(error)
        ours = setting == "scpo"
        axes.errorbar(range(last + 1), means, errors, color=COLORS[setting], marker="o",
                      markersize=4, capsize=2, linewidth=2.4 if ours else 1.4,
                      zorder=3 if ours else 2)
        ends.append((means[-1], last, setting))
    place = -100.0
    for height, last, setting in sorted(ends):
        place = max(height, place + 3.2)  # names must not overlap
        axes.text(last + 0.08, place, LABELS[setting], color=COLORS[setting], va="center",
                  weight="bold" if setting == "scpo" else "normal")
    most = max(rounds.values())
    axes.set(xticks=range(most + 1), xticklabels=[f"M{t}" for t in range(most + 1)],
             xlim=(-0.15, most + 1.1), ylabel="greedy accuracy, %")


def bars_by_round(axes: Axes, lines: Lines, rounds: int) -> None:
    """The share of the k votes that the winner gets, a bar per round (Figure 2)."""
    shades = [GRAY, "#e58a98", "#d8485d", RED]
    for t in range(rounds + 1):
        mean, error = mean_and_error(values(lines, "scpo", f"M{t}", "vote_share"))
        axes.bar(t, mean, yerr=error, color=shades[t], width=0.7, capsize=2)
        axes.text(t, mean / 2, f"{mean:.0f}", ha="center", color="white", weight="bold")
    axes.set(xticks=range(rounds + 1), xticklabels=[f"M{t}" for t in range(rounds + 1)],
             ylim=(0, 100), ylabel="vote share of the winner, %")


def stacked_orders(axes: Axes, found: list[dict]) -> None:
    """Pairs of a correct and a wrong response to one problem, as two judges order them."""
    for height, judge in enumerate(("reward", "votes")):
        left = 0.0
        for order, color in (("wrong", "#d73027"), ("tied", "#d9d9d9"), ("right", "#1a9850")):
            width = 100 * statistics.fmean(shares[judge][order] for shares in found)
            label = order if height == 0 else None
            axes.barh(height, width, left=left, color=color, label=label, height=0.6)
            if width > 4:
                ink = INK if order == "tied" else "white"
                axes.text(left + width / 2, height, f"{width:.1f}", ha="center", va="center",
                          color=ink)
            left += width
    axes.set(yticks=(0, 1), yticklabels=("reward model", "votes"), xlim=(0, 100),
             xlabel="share of pairs, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def accuracy_by_threshold(axes: Axes, lines: Lines) -> None:
    """Greedy accuracy of M1 against τ, with the number of pairs that are left (Table 5)."""
    names, means, errors, pairs = [], [], [], []
    for tau, setting in THRESHOLDS.items():
        mean, error = mean_and_error(values(lines, setting, "M1", "greedy"))
        names.append(str(tau))
        means.append(mean)
        errors.append(error)
        pairs.append(statistics.fmean(values(lines, setting, "M1", "pairs")))
    axes.bar(names, pairs, color="#e3e5e8", width=0.6)
    axes.set(ylabel="pairs", xlabel="τ, share of the k votes")
    right = axes.twinx()
    right.errorbar(names, means, errors, color=RED, marker="o", capsize=2, linewidth=2)
    baseline, _ = mean_and_error(values(lines, "scpo", "M0", "greedy"))
    right.axhline(baseline, color=GRAY, linestyle=":")
    right.text(len(names) - 0.6, baseline + 0.4, "M0", color=GRAY, ha="right")
    right.set_ylabel("greedy accuracy of M1, %", color=RED)
    right.spines["right"].set_visible(True)
