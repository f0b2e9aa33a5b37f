#!/usr/bin/env bash
# Builds and publishes a release's images, each from base images by digest:
#
#   docker/release.sh registry.example.org/team/
#
# Needs a clean checkout of the tag vVERSION and a login to the registry. Leaves in dist/:
#
#   images.txt          every image with its digest
#   images.env          the same for deploy/compose.yaml: docker compose --env-file
#   bases.txt           the base images with theirs
#   sbom-TARGET.json    each image's bill of materials
#   SHA256SUMS          of all files in dist/
#
# Environment: TARGETS [all of docker/Dockerfile], BUILD_ARGS (further arguments for docker build),
# PYTHON_IMAGE, VLLM_IMAGE (other bases), AUDIT=skip (where PyPI's advisories are out of reach).
#
# Exit codes: 0 published, 2 not ready for a release (said in one sentence), 1 a step failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

refuse() {
    echo "vora-serve: $*" >&2
    exit 2
}

[[ $# == 1 && $1 == */ ]] || refuse "usage: docker/release.sh REGISTRY/, with a slash at its end."
registry=$1
version=$(sed -nE 's/^ARG VERSION=(.+)/\1/p' docker/Dockerfile | head -1)
TARGETS=${TARGETS:-gateway engine-cpu engine-cuda training loadtest}
read -ra build_args <<<"${BUILD_ARGS:-}"

[[ -z $(git status --porcelain) ]] || refuse "the checkout has uncommitted changes."
git tag --points-at HEAD | grep -qx "v$version" || refuse "this commit does not carry the tag v$version."
.github/release-notes.sh "$version" >/dev/null || refuse "the changelog lacks version $version."
if [[ ${AUDIT:-} != skip ]]; then
    .github/audit.sh || refuse "known vulnerabilities in what is pinned; see above."
fi

mkdir -p dist
: >dist/bases.txt
: >dist/images.txt
printf 'REGISTRY=%s\nTAG=%s\n' "$registry" "$version" >dist/images.env

# The name of an image by its digest.
pinned() {
    case $1 in
        *@sha256:*) echo "$1" ;;
        *)
            docker pull --quiet "$1" >/dev/null
            # Other registries may have the same image under a digest of their own.
            local name=${1##*/}
            docker inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" |
                grep -F --max-count 1 "${1%"$name"}${name%%:*}@"
            ;;
    esac
}

default() { sed -nE "s/^ARG $1=(.+)/\1/p" docker/Dockerfile | head -1; }
bases=()
for name in PYTHON_IMAGE VLLM_IMAGE; do
    [[ $name == PYTHON_IMAGE || " $TARGETS " == *" engine-cuda "* ]] || continue
    base=$(pinned "${!name:-$(default $name)}")
    echo "$base" >>dist/bases.txt
    bases+=(--build-arg "$name=$base")
done

for target in $TARGETS; do
    image=${registry}vora-serve-$target:$version
    echo "vora-serve: $image"
    DOCKER_BUILDKIT=1 docker build "${bases[@]}" "${build_args[@]}" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse HEAD)" \
        --build-arg "SOURCE=$(git remote get-url origin 2>/dev/null || echo unknown)" \
        --file docker/Dockerfile --target "$target" --tag "$image" .
    bill=/opt/venv/sbom.cdx.json
    [[ $target == engine-cuda ]] && bill=/usr/local/share/vora-serve-packages.txt
    docker run --rm --network none --entrypoint cat "$image" $bill >"dist/sbom-$target.${bill##*.}"
    docker push "$image"
    published=$(docker inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$image" |
        grep -F "${registry}vora-serve-$target@")
    echo "$published" >>dist/images.txt
    variable=${target^^}
    echo "${variable//-/_}_DIGEST=@${published#*@}" >>dist/images.env
done

(cd dist && rm -f SHA256SUMS && sha256sum -- * >SHA256SUMS)
cat dist/images.txt
