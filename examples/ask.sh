#!/usr/bin/env bash
# Ask about an image with curl.   ./ask.sh scene.png "How many shapes are there?"
set -euo pipefail
image=${1:?usage: ask.sh IMAGE [QUESTION]} question=${2:-What do you see?}
base=${VORA_BASE_URL:-http://127.0.0.1:8000}

case $image in
    http://* | https://*) url=$image ;;
    *.jpg | *.jpeg) url="data:image/jpeg;base64,$(base64 <"$image" | tr -d '\n')" ;;
    *) url="data:image/png;base64,$(base64 <"$image" | tr -d '\n')" ;;
esac

# python3 writes the JSON, so that quotes in a question are safe; curl sends it.
IMAGE_URL=$url QUESTION=$question python3 -c '
import json, os
print(json.dumps({
    "model": os.environ.get("VORA_MODEL", "vora-demo"),
    "temperature": 0,
    "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": os.environ["IMAGE_URL"]}},
        {"type": "text", "text": os.environ["QUESTION"]},
    ]}],
}))' | curl -sS --fail-with-body "$base/v1/chat/completions" \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer ${VORA_API_KEY:-unused}" \
    --data-binary @-
echo
