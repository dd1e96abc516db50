# shellcheck shell=sh
# Sourced from the repository root. Chooses the Python that runs dssn and sets $python to its path.
#
#   find_python            finds an existing environment, or fails with one error on what is missing
#   set_up_python [LIST]   the same, but creates or completes .venv instead of failing;
#                          LIST is a second list of required packages, beside requirements.txt
#
# The order is: the active environment, .venv, the Python on the PATH. An environment is used if it
# has the packages in the lists and torch >= 1.8.1. The versions in the lists are for new
# environments only.

fail() {
    echo "${0##*/}: $1" >&2
    exit "${2:-1}"
}

# Prints the packages of the lists that this Python lacks, without importing them (torch is slow).
print_missing='
import re, sys
from importlib.metadata import PackageNotFoundError, version

missing = []
for path in sys.argv[1:]:
    for name in re.findall(r"^[\w.-]+", open(path).read(), re.MULTILINE):
        try:
            found = version(name) or "0"
        except PackageNotFoundError:
            missing.append(name)
            continue
        if name == "torch" and tuple(map(int, re.findall(r"\d+", found)[:3])) < (1, 8, 1):
            missing.append("torch>=1.8.1 (%s is there)" % found)
print(" ".join(missing))
'

# has_packages PYTHON LIST...; sets $problem to what is missing, or to nothing
has_packages() {
    candidate=$1
    shift
    if ! missing=$("$candidate" -c "$print_missing" "$@" 2>/dev/null); then
        problem="$candidate does not run, or is older than Python 3.8"
    elif [ -n "$missing" ]; then
        problem="$candidate lacks: $missing"
    else
        problem=
    fi
    [ -z "$problem" ]
}

# search LIST...; sets $python, or $problems to the problem of the first Python that exists
search() {
    problems=
    for python in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" \
        "$PWD/.venv/bin/python" "$(command -v "${PYTHON:-python3}")" "$(command -v python)"; do
        [ -x "$python" ] || continue
        if [ "$python" = "$PWD/.venv/bin/python" ] && [ -e .venv/incomplete ]; then
            problem="the installation in .venv did not finish (.venv/incomplete)"
        elif has_packages "$python" "$@"; then
            return 0
        fi
        problems=${problems:-$problem}
    done
    return 1
}

find_python() {
    search requirements.txt || fail "${problems:-no Python on the PATH}; \
\`pip install -r requirements.txt\` or \`sh scripts/quickstart.sh\` installs what is needed"
}

# require_new_python PYTHON REMEDY: the torch in requirements.txt needs Python 3.11
require_new_python() {
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || fail \
        "$1 does not run (a shim without a version?): name another, such as PYTHON=python3.11"
    case $version in
    2.* | 3.? | 3.10) fail "$1 is Python $version, and requirements.txt needs 3.11 or newer: $2, \
or make an environment with env200.txt (Python 3.8-3.11) or env181.txt (3.8, 3.9), activate it and run this again" ;;
    esac
}

set_up_python() {
    if ! search requirements.txt "$@"; then
        [ -z "$problems" ] || echo "env: $problems"
        python=$PWD/.venv/bin/python
        complete_venv "$@"
    fi
    echo "env: $python"
}

# The file .venv/incomplete marks an interrupted installation. The next run completes it.
complete_venv() {
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        require_new_python "${PYTHON:-python3}" 'set PYTHON=python3.11'
        echo "env: creating .venv with Python $version; the packages need some GB and some minutes"
        "${PYTHON:-python3}" -m venv .venv ||
            fail "${PYTHON:-python3} could not create .venv; remove .venv and run this again"
    fi
    if [ -e .venv/incomplete ] || ! has_packages "$python" requirements.txt; then
        require_new_python "$python" 'remove .venv and set PYTHON=python3.11'
        : >.venv/incomplete
        install requirements.txt
        rm .venv/incomplete
    fi
    for list; do
        install "$list"
    done
}

install() {
    "$python" -m pip install --disable-pip-version-check -r "$1" ||
        fail "pip install -r $1 failed in .venv; run this again to complete it"
}

# free_port PORT: prints the first port, starting at PORT, on which a server may listen. The probe
# does not listen itself: another script that probes at the same time would take the port for used.
free_port() {
    "$python" -c '
import socket, sys

for port in list(range(int(sys.argv[1]), 65536)) + [0]:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        except OSError:
            continue
        print(probe.getsockname()[1])
        break
' "$1"
}
