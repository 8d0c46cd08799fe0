"""What a run will write, known before it writes anything."""

from __future__ import annotations

from torch import nn

from common_utils.resources import Need


def disk_needs(trained: nn.Module, best: int, more: Need | None = None) -> dict[str, Need]:
    """Disk that a run takes for its states and weights, at most.

    trained: what is saved and trained. best: how many of the best weights are kept.
    more: what a state holds beside the networks, such as the replay.
    """
    weights = sum(tensor.nbytes for tensor in trained.state_dict().values())
    moments = 2 * sum(p.nbytes for p in trained.parameters() if p.requires_grad)  # Adam's
    needs = {
        "networks in states": Need(2 * (weights + moments)),  # the state before stays meanwhile
        "weights": Need((best + 2) * weights),  # with latest.pt, and one being written
    }
    if more is not None:
        needs["replay in states"] = Need(2 * more.bytes, more.field)
    return needs
