#!/usr/bin/env bash
# Fetch ONNX Runtime's headers (MIT) into a folder, from an npm package that contains them; ONNX Runtime's releases have them, too.
set -euo pipefail
package=@siteed/sherpa-onnx.rn@1.3.1
sha256=1beacdebc3d6f0274f7ef63c46f1bdbf6eb2e6c6722e0c799faa952ce4632b06
to=${1:?usage: headers.sh FOLDER}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
archive=$scratch/$(npm pack --silent --ignore-scripts --pack-destination "$scratch" "$package")
echo "$sha256  $archive" | sha256sum --check --quiet
mkdir -p "$to"
tar -xzf "$archive" -C "$to" --strip-components=4 package/prebuilt/include/onnxruntime
