# Shared by the scripts of tpu/ and gpu/: reading arguments, checking settings, dry runs.
# shellcheck shell=bash disable=SC2034 # what the scripts use
set -euo pipefail
((BASH_VERSINFO[0] > 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] >= 4))) || { echo "error: needs bash 4.4 or newer" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run="" args=() problems=()

# Sets `dry_run`, and `args` to all other arguments. --help prints the script's top comment.
read_args() {
  local arg
  for arg; do
    case $arg in
      --dry-run) dry_run=yes ;;
      -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
      *) args+=("$arg") ;;
    esac
  done
}

problem() { problems+=("$*"); }

# check VARIABLE PATTERN MEANING: adds a problem if the variable is not set or does not match.
check() {
  if [[ -z ${!1-} ]]; then
    problem "$1 is not set: $3"
  elif ! [[ ${!1} =~ ^($2)$ ]]; then
    problem "$1=${!1}: expected $3"
  fi
}

# Adds a problem if there are arguments after the flags.
check_no_args() { ((${#args[@]} == 0)) || problem "unknown arguments: $(quoted "${args[@]}")"; }

# check_train_args SETTINGS: checks arguments for p2o_jax.main, which must not include the settings
# (a pattern) that the scripts set.
check_train_args() {
  local arg has_config=""
  for arg in "${args[@]}"; do
    [[ $arg != --config && $arg != --config=* ]] || has_config=yes
    ! [[ ${arg%%=*} =~ ^($1)$ ]] || problem "$arg: the script sets this itself"
  done
  [[ -n $has_config ]] || problem "arguments of p2o_jax.main are missing: --config configs/NAME.py [--config.section.name=value ...]"
}

# check_program NAME HOW: adds a problem if the program is missing, except in a dry run.
check_program() { [[ -n $dry_run ]] || command -v "$1" > /dev/null || problem "$1 is not installed: $2"; }

# Prints all problems and exits, if there are any.
settle() {
  ((${#problems[@]} == 0)) || { printf 'error: %s\n' "${problems[@]}" >&2; exit 2; }
}

# The words quoted for a shell.
quoted() {
  local word words=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] && words+=("$word") || words+=("${word@Q}")
  done
  echo "${words[*]}"
}

# Runs a command, or prints it.
run() {
  if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

say() { echo "$(date +%H:%M:%S) $*" >&2; }
