# Shared by the scripts in this folder, which run a project of this repository on a checkpoint.
# DOTNET_RUN_OPTIONS: options for dotnet run, such as --no-build.

# The text at the top of a script, without the comment signs.
usage() { sed -n '2,/^$/ s/^# \{0,1\}//p' "$0"; }

# run PROJECT COMMAND MODEL [OPTION...]
run() {
    local project="$1" command="$2" model="${3:-}"
    if [[ "$model" == -h || "$model" == --help ]]; then
        usage
        exit 0
    elif [[ -z "$model" ]]; then
        usage >&2
        exit 2
    elif [[ ! -f "$model/config.json" ]]; then
        echo "$0: expected the folder of a Hugging Face checkpoint, with a config.json, but got '$model'" >&2
        exit 2
    fi
    shift 3
    # shellcheck disable=SC2086 # several options
    exec dotnet run -c Release ${DOTNET_RUN_OPTIONS:-} --project "$(dirname "${BASH_SOURCE[0]}")/../../$project" -- "$command" --model "$model" "$@"
}
