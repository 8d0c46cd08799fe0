# shellcheck shell=bash
# Sets the project up, and prepares this shell for it. Run it once per shell, from bash or zsh:
#
#     source set_env.sh
#
# It uses the active virtual or conda environment, or creates .venv next to this file. It installs
# requirements.txt, builds the C++ modules, installs the command ibrl, and exports PYTHONPATH,
# OMP_NUM_THREADS and MUJOCO_GL. It is safe to repeat: if requirements, C++ sources, pyproject.toml,
# Python and GL libraries have not changed, it only exports. If there is a problem, it says what is missing and returns non-zero; it never ends
# the shell. Remove .cache/set_env to do everything again. Missing system libraries are installed
# by apt if no password is needed. With SET_ENV_NO_APT=1 the command is printed instead.

# ---------------------------------------------------------------- the work, in a child bash

_setup_say() { printf 'set_env: %s\n' "$*"; }
_setup_fail() { printf 'set_env: ERROR: %s\n' "$*" >&2; exit 1; }

# Installs Debian packages if allowed; otherwise prints the command. 0 if all are installed.
_setup_apt() {
    local run="" package failed=0
    if ! command -v apt-get >/dev/null 2>&1; then
        _setup_say "please install with your system's package manager: $*"
        return 1
    fi
    if [ -n "${SET_ENV_NO_APT:-}" ]; then
        _setup_say "please run: apt-get install -y $*"
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
            run="sudo -n"
        else
            _setup_say "not allowed to install system packages; please run:"
            _setup_say "    sudo apt-get install -y $*"
            return 1
        fi
    fi
    _setup_say "installing system packages with apt: $*"
    $run apt-get update -qq >/dev/null 2>&1
    for package in "$@"; do # one by one: if a release lacks one, the others are still installed
        if ! DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends \
            "$package" >/dev/null 2>&1; then
            _setup_say "apt could not install $package"
            failed=1
        fi
    done
    return $failed
}

_setup_version_ok() { # runs the program, because a pyenv shim may exist without a Python behind it
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

_setup_venv() { # creates or repairs .venv
    local python="" candidate
    if [ -x "$_root/.venv/bin/python" ] && _setup_version_ok "$_root/.venv/bin/python" &&
        grep -qF "$_root/.venv" "$_root/.venv/bin/activate" 2>/dev/null &&
        "$_root/.venv/bin/python" -c 'import pip' 2>/dev/null; then
        return 0
    fi
    for candidate in python3 python3.12 python3.11 python3.10 /usr/bin/python3; do
        if _setup_version_ok "$candidate"; then
            python="$candidate"
            break
        fi
    done
    [ -n "$python" ] || _setup_fail "no Python 3.10 to 3.12 found; install one (on Debian or" \
        "Ubuntu: apt-get install python3 python3-venv python3-dev) or activate an environment"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        local minor
        minor="$("$python" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"
        _setup_apt "$minor" || _setup_fail "$python cannot create virtual environments: $minor is missing"
    fi
    [ -e "$_root/.venv" ] && _setup_say "$_root/.venv is broken or was moved: making it anew"
    _setup_say "creating $_root/.venv with $("$python" --version 2>&1)"
    "$python" -m venv --clear "$_root/.venv" || _setup_fail "$python -m venv failed"
    # the pip that comes with Python 3.10 takes many minutes to choose among versions
    "$_root/.venv/bin/python" -m pip install -q --disable-pip-version-check --retries 1 \
        --upgrade 'pip>=24' 2>/dev/null || _setup_say "could not upgrade pip, going on with the old one"
}

# pip install, without the warnings that call for nothing: about an index that lacks a package
# (another has it), an extra that a package no longer has, and being root
_setup_pip() {
    {
        PIP_ROOT_USER_ACTION=ignore "$_python" -m pip install --disable-pip-version-check "$@" \
            2>&1 >&3 | grep --line-buffered -vE \
            "^WARNING: (Location|Url) '.*' is ignored|^WARNING: .* does not provide the extra" >&2
        return "${PIPESTATUS[0]}"
    } 3>&1
}

_setup_requirements() {
    if ! "$_python" -m pip --version >/dev/null 2>&1; then
        "$_python" -m ensurepip --upgrade >/dev/null 2>&1 ||
            _setup_fail "$_python has no pip; run: $_python -m ensurepip (or install pip in this environment)"
    fi
    _setup_say "installing requirements.txt (the first time several minutes and up to 6 GB)"
    # modules are compiled when they are first loaded: few of the 25,000 ever are, and all take minutes
    _setup_pip --no-compile --progress-bar off -r "$_root/requirements.txt" |
        sed -u -n -E 's/^(Collecting|Building|Installing collected)([^()]*).*/  \1\2/p' | cut -c 1-100
    [ "${PIPESTATUS[0]}" -eq 0 ] || _setup_fail "pip install -r requirements.txt failed (see above)"
}

_setup_tools() { # the tools that the build needs, checked before the long installation
    local missing=""
    command -v "${CXX:-g++}" >/dev/null 2>&1 || missing="g++"
    command -v make >/dev/null 2>&1 || missing="$missing make"
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086
        _setup_apt $missing || _setup_fail "needed to build the C++ module: ${missing# }"
    fi
    if ! "$_python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
        missing="$("$_python" -c 'import sys; print("python3.%d-dev" % sys.version_info[1])')"
        _setup_apt "$missing" || _setup_fail "Python.h is missing: install $missing"
    fi
}

_setup_build() {
    _setup_say "building the C++ module (cd common_utils && make)"
    PATH="$(dirname "$_python"):$PATH" make -s -C "$_root/common_utils"
}

# Both take minutes and, nearly all the time, one core each. The modules need a single package.
_setup_packages_and_modules() {
    local builder="" log="$_root/.cache/set_env/build.log"
    if grep -q '^pybind11' "$_root/requirements.txt"; then
        _setup_pip -q "$(grep '^pybind11' "$_root/requirements.txt")" ||
            _setup_fail "pip install pybind11 failed (see above)"
    fi
    _setup_build >"$log" 2>&1 &
    builder=$!
    if ! (_setup_requirements); then # it has said why
        kill "$builder" 2>/dev/null
        exit 1
    fi
    wait "$builder"
    local status=$?
    cat "$log" >&$((status ? 2 : 1))
    rm -f "$log"
    [ "$status" -eq 0 ] ||
        _setup_fail "the C++ module did not build (see above); to retry: cd common_utils && make"
}

_setup_command() {
    _setup_say "installing the command ibrl"
    _setup_pip -q --no-deps --no-build-isolation -e "$_root" ||
        _setup_fail "pip install -e failed (see above)"
}

_setup_libraries() { # names of the GL libraries the loader knows
    { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } |
        grep -oE 'lib(OSMesa|EGL|GL)\.so\.[0-9]+' | sort -u | tr '\n' ' '
}

_setup_gl() { # sets _gl to the back end that really renders
    local known missing=""
    known="$(_setup_libraries)"
    case "$known" in *libEGL.so*) ;; *) missing="$missing libegl1" ;; esac
    case "$known" in *libGL.so*) ;; *) missing="$missing libgl1" ;; esac
    case "$known" in *libOSMesa.so*) ;; *) missing="$missing libosmesa6" ;; esac
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2086
        _setup_apt $missing
    fi
    # the last line only: a driver may print notes of its own
    _gl="$(cd "$_root" && PYTHONPATH="$_root" "$_python" -m common_utils.gl 2>/dev/null | tail -n 1)"
    case "$_gl" in
        egl | osmesa) _setup_say "rendering with $_gl" ;;
        *)
            _gl=disabled
            _setup_say "no GL back end renders here: states only, no pixels and no videos"
            ;;
    esac
}

# A hash of everything that was set up: if it equals the recorded one, there is nothing to do.
_setup_key() {
    {
        find "$_root"/{requirements.txt,pyproject.toml,setup.py,csrc,common_utils/Makefile} -type f |
            LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat
        printf '%s\n' "$_python" "$_root"
        stat -L -c '%s %Y' "$_python" 2>/dev/null
        ls /dev/dri /dev/nvidia* 2>/dev/null
        _setup_libraries
    } | sha256sum | cut -d ' ' -f 1
}

_setup_main() {
    local stamp
    if [ -n "$_active" ]; then
        _python="$_active/bin/python"
    else
        _python="$_root/.venv/bin/python"
    fi
    mkdir -p "$_root/.cache/set_env" || _setup_fail "cannot write to $_root/.cache"
    stamp="$_root/.cache/set_env/$(printf '%s' "$_python" | sha256sum | cut -c 1-16)"
    if command -v flock >/dev/null 2>&1; then # two shells at once: the second waits
        exec 9>"$stamp.lock"
        flock -n 9 || { _setup_say "another shell is setting up, waiting for it"; flock 9; }
    fi
    if [ -x "$_python" ] && ls "$_root"/common_utils/{rela,kernels,osc,ebm_kernels}*.so >/dev/null 2>&1 &&
        [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$(_setup_key)" ]; then
        exit 0
    fi
    if [ -n "$_active" ]; then
        _setup_say "using the active environment $_active"
        [ -x "$_python" ] || _setup_fail "$_python is missing: deactivate this environment and source again"
        _setup_version_ok "$_python" || _setup_fail "$_active has $("$_python" --version 2>&1)," \
            "Python 3.10 to 3.12 is needed: deactivate it and source again"
    else
        _setup_venv
    fi
    _setup_tools
    _setup_packages_and_modules
    _setup_command
    _setup_gl
    # written last: an interrupted set-up is done again
    printf '%s\n%s\n' "$(_setup_key)" "$_gl" >"$stamp.new" && mv -f "$stamp.new" "$stamp"
    _setup_say "done"
}

if [ -n "${_SET_ENV_CHILD:-}" ] && [ -n "${_SET_ENV_APT:-}" ]; then # .ci/run, for the tests
    # shellcheck disable=SC2086
    _setup_apt $_SET_ENV_APT
    exit
fi
if [ -n "${_SET_ENV_CHILD:-}" ] && [ -n "${BASH_VERSION:-}" ]; then
    _root="$_SET_ENV_ROOT"
    _active="$_SET_ENV_ACTIVE"
    unset _SET_ENV_CHILD
    set +eu
    _setup_main
    exit 0
fi

# ---------------------------------------------------------------- the sourced part, bash or zsh

_set_env() {
    local root active python stamp gl
    root="$(CDPATH='' builtin cd -- "$(dirname -- "$1")" >/dev/null 2>&1 && pwd -P)"
    if [ ! -f "$root/requirements.txt" ]; then
        printf 'set_env: ERROR: cannot find the folder of set_env.sh (tried %s)\n' "$root" >&2
        return 1
    fi
    active=""
    if [ -n "${VIRTUAL_ENV:-}" ] && [ -d "${VIRTUAL_ENV:-}" ]; then
        active="$VIRTUAL_ENV"
    elif [ -n "${CONDA_PREFIX:-}" ] && [ -d "${CONDA_PREFIX:-}" ]; then
        active="$CONDA_PREFIX"
    fi
    if [ "$active" = "$root/.venv" ]; then active=""; fi # ours: may be repaired
    _SET_ENV_CHILD=1 _SET_ENV_ROOT="$root" _SET_ENV_ACTIVE="$active" \
        command bash "$root/set_env.sh" </dev/null || return 1

    if [ -z "$active" ]; then
        # shellcheck disable=SC1091
        . "$root/.venv/bin/activate" || return 1
        active="$root/.venv"
    fi
    python="$active/bin/python"
    stamp="$root/.cache/set_env/$(printf '%s' "$python" | sha256sum | cut -c 1-16)"
    gl="$(sed -n 2p "$stamp")"
    case ":${PYTHONPATH:-}:" in
        *":$root:"*) ;;
        *) PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" ;;
    esac
    export PYTHONPATH
    export OMP_NUM_THREADS=1
    # a back end that the user chose stays; one that we chose earlier may be outdated
    if [ -z "${MUJOCO_GL:-}" ] || [ "${MUJOCO_GL:-}" = "${_SET_ENV_GL:-}" ]; then
        export MUJOCO_GL="$gl"
        export _SET_ENV_GL="$gl"
    fi
    printf 'set_env: ready: %s, OMP_NUM_THREADS=1, MUJOCO_GL=%s\n' "$active" "$MUJOCO_GL"
}

if [ -n "${BASH_VERSION:-}" ]; then
    # shellcheck disable=SC2128
    if [ "${BASH_SOURCE:-}" = "$0" ]; then
        echo "set_env: ERROR: source this file instead: source set_env.sh" >&2
        exit 1
    fi
    _set_env_file="$BASH_SOURCE"
elif [ -n "${ZSH_VERSION:-}" ]; then
    eval '_set_env_file="${(%):-%x}"'
    case "${ZSH_EVAL_CONTEXT:-}" in
        *file*) ;;
        *)
            echo "set_env: ERROR: source this file instead: source set_env.sh" >&2
            exit 1
            ;;
    esac
else
    echo "set_env: ERROR: bash or zsh is needed" >&2
    return 1
fi

_set_env_status=0
_set_env "$_set_env_file" || _set_env_status=1
unset _set_env_file
unset -f _set_env _setup_say _setup_fail _setup_apt _setup_version_ok _setup_venv \
    _setup_pip _setup_requirements _setup_packages_and_modules _setup_tools _setup_build \
    _setup_command _setup_libraries _setup_gl _setup_key _setup_main
if [ "$_set_env_status" -ne 0 ]; then
    unset _set_env_status
    return 1
fi
unset _set_env_status
