"""From what heads lose to what they get: budgets that minimise the total loss.

Minimise Σ_h loss_h(b_h) subject to Σ_h b_h = T and floor ≤ b_h ≤ n. With the lower convex hull
of each loss curve the objective is convex and separable, so giving each token to the head with the
steepest remaining descent (greedy water-filling) is optimal: at the optimum all heads descend
equally steeply (the KKT condition), and a greedy step never has to be taken back.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import bisect

#: What a weight counts at least, so that heads of no weight share what the others cannot take.
_LEAST = 1e-9


def lower_hull(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of the lower convex hull of the points `(x, y)`, `x` strictly ascending.

    Andrew's monotone chain (1979), lower half.
    """
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) >= 2:
            (x0, y0), (x1, y1) = hull[-2], hull[-1]
            if (y1 - y0) * (point[0] - x0) < (point[1] - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append(point)
    return np.array([p[0] for p in hull]), np.array([p[1] for p in hull])


def water_fill(
    shares: np.ndarray, losses: np.ndarray, total: int, floor: int, tokens: int
) -> np.ndarray:
    """Budgets in tokens that minimise the summed loss, by greedy water-filling on convex hulls.

    Args:
        shares: `(points,)` ascending shares of the context, from 0 to 1, at which losses are known.
        losses: `(heads, points)` loss of each head when it keeps that share.
        total: tokens to give out, over all heads.
        floor: tokens that each head gets at least.
        tokens: tokens of the context; no head gets more.

    Returns:
        `(heads,)` integers that add up to `total`, each in `[floor, tokens]`.
    """
    heads = len(losses)
    floor = min(floor, tokens)
    if not heads * floor <= total <= heads * tokens:
        raise ValueError(f"{total} tokens do not fit {heads} heads of {floor} to {tokens} each")
    grid = shares * tokens
    pieces: list[tuple[float, int, float, float]] = []  # slope, head, from, to
    for head, loss in enumerate(losses):
        x, y = lower_hull(grid, loss)
        for left, right, slope in zip(x[:-1], x[1:], np.diff(y) / np.diff(x), strict=True):
            if right > floor:
                pieces.append((slope, head, max(left, floor), right))
    # On a hull slopes ascend from left to right, so sorting by slope keeps each head's order.
    pieces.sort(key=lambda piece: (piece[0], piece[1], piece[2]))
    budgets = np.full(heads, float(floor))
    left_over = float(total - heads * floor)
    for _, head, left, right in pieces:
        take = min(right - left, left_over)
        budgets[head] += take
        left_over -= take
        if left_over <= 0:
            break
    return round_to_sum(budgets, total)


def round_to_sum(values: np.ndarray, total: int) -> np.ndarray:
    """Integers next to `values` that add up to `total` (largest remainders, ties by index)."""
    floors = np.floor(values).astype(int)
    missing = total - int(floors.sum())
    order = np.argsort(-(values - floors), kind="stable")
    floors[order[:missing]] += 1
    return floors


def at_one_level(
    kept: Callable[[float], np.ndarray], total: int, floor: int, tokens: int
) -> np.ndarray:
    """Budgets of heads that all compete at one level, within `[floor, tokens]`.

    Args:
        kept: the share of its tokens that each head keeps at a level from 0 to 1, `(heads,)`,
            which grows with the level, from 0 to 1.
        total, floor, tokens: as of `water_fill`.

    Returns:
        `(heads,)` integers that add up to `total`: those of the level at which heads that keep less
        than the floor get the floor, and all together get `total`.
    """

    def at(level: float) -> np.ndarray:
        return np.clip(kept(level) * tokens, min(floor, tokens), tokens)

    level = bisect(lambda level: at(level).sum() - total, 0.0, 1.0, xtol=1e-12)
    return round_to_sum(at(level), total)


def in_proportion(weights: np.ndarray, total: int, floor: int, tokens: int) -> np.ndarray:
    """Budgets proportional to the weights of heads, within `[floor, tokens]`.

    What a head cannot take because it is full is shared out among the others. Returns `(heads,)`
    integers that add up to `total`.
    """
    heads = len(weights)
    floor = min(floor, tokens)
    budgets = np.full(heads, float(floor))
    left_over = float(total - heads * floor)
    open_heads = np.ones(heads, dtype=bool)
    while left_over > 1e-9 and open_heads.any():
        grant = np.where(open_heads, weights + _LEAST, 0.0)
        grant = left_over * grant / grant.sum()
        taken = np.minimum(grant, tokens - budgets)
        budgets += taken
        left_over -= float(taken.sum())
        open_heads = budgets < tokens - 1e-9
    return round_to_sum(budgets, total)
