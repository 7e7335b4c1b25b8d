#!/bin/bash
# A lifecycle configuration for JupyterLab in SageMaker Studio: each time the space starts, every project in the home
# folder has its environment and its kernel. It returns at once, as Studio allows five minutes; the log says the rest.
#
#   aws sagemaker create-studio-lifecycle-config --studio-lifecycle-config-name runner \
#     --studio-lifecycle-config-app-type JupyterLab \
#     --studio-lifecycle-config-content "$(base64 -w0 infra/studio-lifecycle.sh)"
#
# Then attach it to the domain or the space, in the console under Domain > Environment. By hand, `make studio` in the
# project does the same for one.
set -euo pipefail

usage() {
    echo "Usage: studio-lifecycle.sh [--dry-run] [--wait] [FOLDER]..."
    echo "Makes the environment of each project in FOLDER (default: the home folder), and registers its kernel."
    echo "  --dry-run  say which projects there are, and change nothing"
    echo "  --wait     do it now, instead of in the background"
}

dry_run=no
wait=no
folders=()
for argument in "$@"; do
    case "$argument" in
        -h | --help)
            usage
            exit 0
            ;;
        --dry-run) dry_run=yes ;;
        --wait) wait=yes ;;
        -*)
            usage >&2
            exit 2
            ;;
        *) folders+=("$argument") ;;
    esac
done
if [ "${#folders[@]}" -eq 0 ]; then
    folders=("$HOME")
fi
log="$HOME/.runner-studio.log"

# a project is a checkout with a pipeline, its packages and the target that makes them an environment
projects() {
    local file
    find "${folders[@]}" -maxdepth 3 -name pipeline.toml -not -path '*/.*' -not -path '*/runs/*' 2> /dev/null | sort |
        while IFS= read -r file; do
            if grep -qs '^studio:' "${file%/*}/Makefile" && [ -f "${file%/*}/requirements-all.lock" ]; then
                echo "${file%/*}"
            fi
        done
}

make_ready() {
    local project failed=0
    while IFS= read -r project; do
        echo "$(date -u +%FT%TZ) $project"
        if ! make -C "$project" --no-print-directory studio; then
            echo "$(date -u +%FT%TZ) $project: failed; see above, then run make studio there"
            failed=1
        fi
    done < <(projects)
    return "$failed"
}

if [ -z "$(projects)" ]; then
    echo "there is no project with a pipeline.toml in ${folders[*]}; clone one, then run make studio in it"
elif [ "$dry_run" = yes ]; then
    projects | sed 's/^/would make the environment and the kernel of /'
elif [ "$wait" = yes ]; then
    make_ready
else
    make_ready >> "$log" 2>&1 < /dev/null &
    disown
    echo "environments and kernels are being made; see $log"
fi
