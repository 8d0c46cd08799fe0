"""Images of the particle's path, for videos (PIL draws one in about a millisecond)."""

from __future__ import annotations

import numpy as np

from env.particle.sim import ParticleSim

_GREEN, _BLUE, _RED, _GREY = (30, 160, 60), (50, 80, 220), (220, 50, 50), (120, 120, 120)
_GOALS = (_GREEN, _BLUE)


def picture(sim: ParticleSim, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: first goal green, second goal blue, set-points red."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    (_plane if sim.params.n_dim == 2 else _over_time)(draw, sim, size)
    return np.asarray(image)


def _plane(draw, sim: ParticleSim, size: int) -> None:  # type: ignore[no-untyped-def]
    """[0, 1]^2 with a margin, y upwards."""

    def at(point: np.ndarray) -> tuple[float, float]:
        return (0.05 + 0.9 * float(point[0])) * size, (0.95 - 0.9 * float(point[1])) * size

    def disc(point: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
        x, y = at(point)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    for goal, colour in zip(sim.goals, _GOALS, strict=True):
        disc(
            goal,
            max(2.0, 0.9 * sim.params.goal_distance * size),
            (*(c // 3 + 170 for c in colour),),
        )
        disc(goal, max(1.5, 0.009 * size), colour)
    for setpoint in sim.setpoints:
        x, y = at(setpoint)
        draw.line((x - 3, y - 3, x + 3, y + 3), fill=_RED)
        draw.line((x - 3, y + 3, x + 3, y - 3), fill=_RED)
    if len(sim.path) > 1:
        draw.line([at(p) for p in sim.path], fill=_GREY, width=max(1, size // 112))
    disc(sim.position, max(2.0, 0.015 * size), (0, 0, 0))


def _over_time(draw, sim: ParticleSim, size: int) -> None:  # type: ignore[no-untyped-def]
    """One strip per dimension: the coordinate over the episode, goals as lines."""
    dims, total = sim.params.n_dim, sim.params.n_steps * sim.params.repeat_actions
    path, strip = np.stack(sim.path), size / dims
    for i in range(dims):

        def height(value: float, i: int = i) -> float:
            return (i + 0.9 - 0.8 * min(max(value, 0.0), 1.0)) * strip

        for goal, colour in zip(sim.goals, _GOALS, strict=True):
            draw.line((0, height(goal[i]), size, height(goal[i])), fill=colour)
        line = [(t / total * size, height(x)) for t, x in enumerate(path[:, i])]
        if len(line) > 1:
            draw.line(line, fill=(0, 0, 0))
        draw.line((0, (i + 1) * strip, size, (i + 1) * strip), fill=(220, 220, 220))
