"""Completion of ``ibrl`` by the TAB key in bash and zsh.

    ibrl completion bash > ~/.local/share/bash-completion/completions/ibrl
    ibrl completion zsh > ~/.zfunc/_ibrl         # a folder of $fpath

The script holds the options of every command and their values, as the commands' own ``--help``
prints them, so that nothing is started at a TAB. After an update, make it again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from common_utils.errors import UserError, run_program
from common_utils.options import Options
from ibrl.commands import COMMANDS, GROUPS, Command, load

# of each option; () is any text, or a file. Those under "" are not an option's, but the command's
Values = dict[str, tuple[str, ...]]

# an option of run configurations: --name  (kind; default: value)
_FIELD = re.compile(r"^  (--[\w.]+)  \((.*); default: ", re.MULTILINE)
# of argparse, at the beginning of a line: -h, --name {a,b}
_ARGUMENT = re.compile(
    r"^  (?:-\w(?: \S+)?, )?(--[\w-]+)(?![\w.-])(?:[ =]\{([^}]*)\})?", re.MULTILINE
)
_POSITIONAL = re.compile(r"^  \{([^}]*)\}", re.MULTILINE)
_KINDS = re.compile(r"^Options with (\w+) \S+; others with \w+ (.*):$", re.MULTILINE)


def help_of(command: Command, *args: str) -> str:
    """What a command prints for ``--help``; "" if its packages are not installed."""
    printed, before = io.StringIO(), sys.argv
    try:
        module = load(command)
        sys.argv = [f"ibrl {command.words}", *args, "--help"]
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            module.main()
    except UserError:
        return ""
    finally:
        sys.argv = before
    return printed.getvalue()


def options_in(text: str) -> Values:
    """The options that a help text lists, and their values."""
    found: Values = {}
    for name, values in _ARGUMENT.findall(text):
        found[name] = tuple(values.split(",")) if values else ()
    for name, kind in _FIELD.findall(text):
        found[name] = _values(kind)
    for values in _POSITIONAL.findall(text):
        found[""] = tuple(values.split(","))
    return found


def _values(kind: str) -> tuple[str, ...]:
    """The values in the words of ``common_utils.config_types.expectation``."""
    if kind in ("0 or 1", "true or false"):
        return tuple(kind.split(" or "))
    if kind.startswith("one of "):
        return tuple(value for value in kind.removeprefix("one of ").split(", ") if value != "''")
    return ()


@functools.cache
def options_of(command: Command) -> Values:
    """The options of a command, of all its kinds (--policy_type, --agent)."""
    text = help_of(command)
    found = options_in(text)
    for field, others in _KINDS.findall(text):
        for kind in others.split(", "):
            found |= options_in(help_of(command, f"--{field}={kind}"))
    return found


def _cases(rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Branches of a shell's ``case`` that print the words of each row."""
    for name, words in rows.items():
        yield f"        {shlex.quote(name)}) echo {shlex.quote(' '.join(words))} ;;"


def lists() -> str:
    """Functions of both shells that print the words that may follow."""
    firsts = {"": sorted({command.words.split()[0] for command in COMMANDS})}
    for group in sorted(GROUPS):
        names = [c.words.split()[1] for c in COMMANDS if c.words.split()[0] == group]
        firsts[group] = names
    options = {c.words: sorted({"--help", *options_of(c)} - {""}) for c in COMMANDS}
    values = {
        f"{command.words} {name}".strip(): words
        for command in COMMANDS
        for name, words in options_of(command).items()
        if words
    }
    parts = []
    for name, rows in (("commands", firsts), ("options", options), ("values", values)):
        lines = "\n".join(_cases(dict(rows)))
        parts.append(f'_ibrl_{name}() {{\n    case "$1" in\n{lines}\n    esac\n}}\n')
    return "\n".join(parts)


BASH = r"""
_ibrl() {
    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD - 1]}"
    # bash takes --option=value apart
    if [ "$cur" = "=" ]; then
        cur=""
    elif [ "$prev" = "=" ] && [ "$COMP_CWORD" -gt 2 ]; then
        prev="${COMP_WORDS[COMP_CWORD - 2]}"
    fi
    local words="" command="${COMP_WORDS[1]}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="$(_ibrl_commands "")"
    elif [ -n "$(_ibrl_commands "$command")" ] && [ "$COMP_CWORD" -eq 2 ]; then
        words="$(_ibrl_commands "$command")"
    else
        [ -n "$(_ibrl_commands "$command")" ] && command="$command ${COMP_WORDS[2]}"
        words="$(_ibrl_values "$command $prev")"
        if [ -z "$words" ] && [[ "$cur" == -* ]]; then
            words="$(_ibrl_options "$command")"
        elif [ -z "$words" ] && [[ "$prev" != -* ]]; then
            words="$(_ibrl_values "$command")"
        fi
    fi
    # nothing: the shell completes file names
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _ibrl ibrl
"""

ZSH = r"""
_ibrl() {
    local given prev="$words[CURRENT-1]" command="$words[2]"
    if compset -P 1 '--[^=]#='; then  # the value of --option=value
        prev="${IPREFIX%=}"
    fi
    if (( CURRENT == 2 )); then
        given="$(_ibrl_commands "")"
    elif [[ -n "$(_ibrl_commands "$command")" ]] && (( CURRENT == 3 )); then
        given="$(_ibrl_commands "$command")"
    else
        [[ -n "$(_ibrl_commands "$command")" ]] && command="$command $words[3]"
        given="$(_ibrl_values "$command $prev")"
        if [[ -z "$given" && "$PREFIX" == -* ]]; then
            given="$(_ibrl_options "$command")"
        elif [[ -z "$given" && "$prev" != -* ]]; then
            given="$(_ibrl_values "$command")"
        fi
    fi
    if [[ -n "$given" ]]; then
        compadd -- ${=given}
    else
        _files
    fi
}
if [[ "$funcstack[1]" == "_ibrl" ]]; then  # a file of $fpath is the function's first call
    _ibrl "$@"
else
    compdef _ibrl ibrl
fi
"""


def script(shell: str) -> str:
    """The script for "bash" or "zsh"."""
    first = "#compdef ibrl\n" if shell == "zsh" else ""
    made = f"# completion of ibrl in {shell}, made by: ibrl completion {shell}\n\n"
    return first + made + lists() + (ZSH if shell == "zsh" else BASH)


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="ibrl completion", description="Print a script that completes ibrl's options."
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that reads the script")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    print(script(_parser().parse_args(argv).shell), end="")


if __name__ == "__main__":
    sys.exit(run_program(main))
