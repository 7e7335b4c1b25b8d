"""The plot in docs/performance.md: how many times the plain script's time each way takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

OURS, OTHERS = "#0072B2", "#999999"  # Okabe-Ito blue, and a grey that prints


def draw(ratios: Mapping[str, float], target: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    names = [name.replace("`", "") for name in ratios if not name.startswith("plain script")]
    ratios = {name.replace("`", ""): ratio for name, ratio in ratios.items()}
    ours = next(name for name in names if name.startswith("runner run"))
    with mpl.rc_context({"svg.hashsalt": "performance", "font.size": 11, "svg.fonttype": "path"}):
        shown, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.3), layout="constrained")
        shades = [OURS if name.startswith("runner") else OTHERS for name in names]
        bars = axes.barh(names, [ratios[name] for name in names], color=shades)
        axes.bar_label(bars, fmt="%.2f ×", padding=4)
        axes.axvline(1, color="black", linewidth=1, linestyle="--")
        axes.text(1.05, len(names) + 0.15, "the plain script", va="bottom", fontsize=9)
        axes.set_ylim(len(names) + 0.2, -0.6)
        axes.set_xlim(0, max(ratios.values()) * 1.15)
        axes.set_xlabel("time ÷ the plain script's time (median of paired runs)")
        axes.set_title(f"Four notebooks run in {ratios[ours]:.2f} × the time of a plain script", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        shown.savefig(target, metadata={"Date": None})
        plt.close(shown)
