"""Draw docs/decode.svg: decode rates of each engine over batch sizes, from one session of benchmarks/results.

    python benchmarks/plot.py [--session NAME] [--out docs/decode.svg]

Bars are medians, whiskers the least and the most of the rounds. Colours hold on light and on dark pages. Needs
matplotlib (`pip install '.[plots]'`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "compare"))

from engines import ENGINES  # noqa: E402
from report import rounds_of  # noqa: E402
from rows import Row, latest_session, rows_of  # noqa: E402
from workload import SCENARIOS  # noqa: E402

INK = "#808890"
COLOURS = {"Realm": "#2f9e6e", "Realm int8 KV": "#86c9a8", "llama.cpp": "#d98324", "OpenVINO GenAI": "#5b8ff9"}
DECODES = [scenario for scenario in SCENARIOS.values() if scenario.kind == "decode"]


def draw(axes: Axes, model: str, rows: list[Row]) -> None:
    """One panel: a group of bars for each decode scenario."""
    for place, scenario in enumerate(DECODES):
        measured = {name: list(rounds_of(rows, name, scenario.name).values()) for name in ENGINES}
        shown = {name: rates for name, rates in measured.items() if rates}
        width = 0.8 / max(1, len(shown))
        for index, (name, rates) in enumerate(shown.items()):
            x, median = place + (index - (len(shown) - 1) / 2) * width, statistics.median(rates)
            axes.bar(x, median, width * 0.92, color=COLOURS[name], label=name)
            axes.vlines(x, min(rates), max(rates), color=INK, linewidth=1)
            axes.annotate(
                f"{median:,.0f}",
                (x, max(rates)),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=INK,
            )
    names = [f"B={s.batch_size}\ncontext {s.prompt_tokens:,}" for s in DECODES]
    axes.set_xticks(range(len(DECODES)), names)
    axes.set_title(model.removesuffix(".gguf"), fontsize=10, color=INK)
    axes.set_ylabel("tokens per second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=HERE / "results" / "compare.jsonl")
    parser.add_argument("--session", help="default: that of the newest row")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "decode.svg")
    args = parser.parse_args()
    rows = rows_of(args.rows, args.session or latest_session(args.rows))
    if not rows:
        raise SystemExit(f"{args.rows} has no rows of session {args.session!r}")
    ink = {f"{part}.color": INK for part in ("text", "xtick", "ytick")} | {
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
    }
    plt.rcParams.update(ink | {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "realm"})
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, panels = plt.subplots(1, len(models), figsize=(4.6 * len(models), 3.4), squeeze=False, layout="constrained")
    handles: dict[str, object] = {}
    for axes, model in zip(panels[0], models, strict=True):
        draw(axes, model, [row for row in rows if row["model"] == model])
        axes.spines[["top", "right"]].set_visible(False)
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(args.out, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
