"""YAML as configurations use it: plain mappings with names for keys, of bounded size.

A safe loader keeps YAML from creating objects, but not from exhausting memory or time: nested
aliases can stand for more than any machine holds, and nesting can exceed Python's stack. Both are
counted here before anything is built.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 200_000  # the largest cfg.yaml has 7,000
MAX_NODES = 20_000  # what an alias stands for counts each time
MAX_DEPTH = 50
MAX_SCALAR = 4_000


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; mappings have distinct strings as keys, at every level.

    Raises ValueError, in one line, for anything else and for anything beyond the limits above.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None
        _count(node, {}, 1)
        loader = _Loader("")
        try:
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_place(error.problem_mark) + (error.problem or "not valid")) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that requires keys to be names, each given once (YAML keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: the fields of another mapping
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                kind = "null" if key is None else f"a {type(key).__name__}"
                self._refuse(f"a key is {kind}, expected a field's name", key_node)
            if key in seen:
                self._refuse(f"key '{key}' is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # an impossible date, an integer with too many digits
            self._refuse(str(error), node)

    @staticmethod
    def _refuse(problem: str, node: yaml.Node) -> None:
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Nodes that ``node`` stands for, aliases included; refuses too many, too deep, too long."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels (or in itself)")
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > MAX_SCALAR:
            raise ValueError(
                f"{_place(node.start_mark)}a value of {len(node.value):,} characters, expected "
                f"up to {MAX_SCALAR:,}"
            )
        return 1
    if id(node) not in known:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [p for pair in node.value for p in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in parts)
        if known[id(node)] > MAX_NODES:
            raise ValueError(f"{_place(node.start_mark)}more than {MAX_NODES:,} values")
    return known[id(node)]
