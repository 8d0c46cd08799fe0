"""robomimic's filter keys (lists of demonstrations) in copies of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bc.demos import Demos
from common_utils.progress import console


def masks_of(source: Demos, new_names: Mapping[str, str]) -> dict[str, list[str]]:
    """The filter keys of ``source`` for a copy whose demonstrations have new names (old -> new).

    A printed note says where a filter key loses demonstrations that are not copied. Raises
    DatasetError for a filter key that cannot be read.
    """
    masks = {}
    for key in source.filter_keys():
        listed = source.filtered(key)
        kept = [new_names[name] for name in listed if name in new_names]
        if kept:
            masks[key] = kept
        if len(kept) < len(listed):
            console().print(
                f"note: filter key {key}: {len(kept)} of its {len(listed)} demonstrations are "
                f"written{'' if kept else '; it is left out'}", soft_wrap=True, markup=False
            )  # fmt: skip
    return masks


def keys_by_name(masks: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Demonstration -> the filter keys that list it, sorted."""
    names = {name for listed in masks.values() for name in listed}
    return {name: sorted(key for key, listed in masks.items() if name in listed) for name in names}
