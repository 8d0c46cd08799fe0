"""Writes the meshes of ``assets/``: python -m env.block_pushing.make_assets

They are polyhedra with the published dimensions, in metres except where a URDF scales them. The
tool pushes with its collision shape. The radius and the number of corners of this shape decide
how a block turns, so both are the published ones.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from common_utils.atomic import atomic_write
from common_utils.errors import run_program

ASSETS = Path(__file__).parent / "assets"
Vertices = list[tuple[float, float, float]]
Faces = list[tuple[int, ...]]


def prism(rings: list[tuple[float, float]], corners: int) -> tuple[Vertices, Faces]:
    """Stacked regular polygons (radius, z), bottom first, closed at both ends."""
    vertices = [
        (r * math.cos(2 * math.pi * k / corners), r * math.sin(2 * math.pi * k / corners), z)
        for r, z in rings
        for k in range(corners)
    ]
    faces: Faces = []
    for level in range(len(rings) - 1):
        low, high = level * corners, (level + 1) * corners
        for k in range(corners):
            n = (k + 1) % corners
            faces += [(low + k, low + n, high + n), (low + k, high + n, high + k)]
    last = (len(rings) - 1) * corners
    for k in range(1, corners - 1):
        faces += [(0, k + 1, k), (last, last + k, last + k + 1)]
    return vertices, faces


def square_ring(outer: float, inner: float, height: float) -> tuple[Vertices, Faces]:
    """A square frame around the origin, standing on z = 0."""
    square = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    vertices = [
        (x * half, y * half, z) for z in (0.0, height) for half in (outer, inner) for x, y in square
    ]
    faces: Faces = []
    for k in range(4):
        n = (k + 1) % 4
        quads = [
            (k, n, 8 + n, 8 + k),  # outside
            (4 + n, 4 + k, 12 + k, 12 + n),  # inside
            (8 + k, 8 + n, 12 + n, 12 + k),  # top
            (n, k, 4 + k, 4 + n),  # bottom
        ]
        for a, b, c, d in quads:
            faces += [(a, b, c), (a, c, d)]
    return vertices, faces


def quad(half: float) -> tuple[Vertices, Faces]:
    """A square in the plane z = 0, facing up."""
    h = half
    return [(-h, -h, 0.0), (h, -h, 0.0), (h, h, 0.0), (-h, h, 0.0)], [(0, 1, 2), (0, 2, 3)]


def _normal(vertices: Vertices, face: tuple[int, ...]) -> tuple[float, float, float]:
    a, b, c = (vertices[i] for i in face[:3])
    u, v = ([q[i] - a[i] for i in range(3)] for q in (b, c))
    n = (u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0])
    length = math.hypot(*n)
    return n[0] / length, n[1] / length, n[2] / length


def obj_text(vertices: Vertices, faces: Faces) -> str:
    """Wavefront OBJ with one normal per face (flat shading)."""
    lines = ["v " + " ".join(f"{x:.8g}" for x in vertex) for vertex in vertices]
    lines += ["vn " + " ".join(f"{x:.6g}" for x in _normal(vertices, face)) for face in faces]
    for number, face in enumerate(faces, start=1):
        lines.append("f " + " ".join(f"{i + 1}//{number}" for i in face))
    return "\n".join(lines) + "\n"


def bellows() -> list[tuple[float, float]]:
    """Profile of the suction cup: three folds within 10 mm radius and 14.5 mm height."""
    return [
        (0.005, 0.0),
        (0.007, 0.002),
        (0.006, 0.004),
        (0.009, 0.0055),
        (0.006, 0.0075),
        (0.0095, 0.009),
        (0.0065, 0.011),
        (0.01, 0.0145),
    ]


MESHES = {
    "head.obj": prism([(0.005, 0.0), (0.005, 0.03)], 64),
    "tip.obj": prism(bellows(), 32),
    "zone.obj": square_ring(10.0, 9.0025, 20.0),
    "workspace.obj": quad(15.0),
}


def main() -> None:
    """Write every mesh."""
    for name, (vertices, faces) in MESHES.items():
        with atomic_write(ASSETS / name, "w") as file:
            file.write(obj_text(vertices, faces))


if __name__ == "__main__":
    sys.exit(run_program(main))
