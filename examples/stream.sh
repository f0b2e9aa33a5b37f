#!/usr/bin/env bash
# Stream an answer with curl, word by word.   ./stream.sh "What is VoRA?"
set -euo pipefail
question=${1:-What do you see?}
base=${VORA_BASE_URL:-http://127.0.0.1:8000}

QUESTION=$question python3 -c '
import json, os
print(json.dumps({
    "model": os.environ.get("VORA_MODEL", "vora-demo"),
    "stream": True, "temperature": 0, "max_tokens": 64,
    "messages": [{"role": "user", "content": os.environ["QUESTION"]}],
}))' | curl -sSN --fail-with-body "$base/v1/chat/completions" \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer ${VORA_API_KEY:-unused}" \
    --data-binary @- | while IFS= read -r line; do
    # Events are lines "data: {...}"; the last one is "data: [DONE]".
    [[ $line == data:\ \{* ]] || continue
    python3 -c '
import json, sys
choices = json.loads(sys.argv[1][6:]).get("choices") or [{}]
sys.stdout.write(choices[0].get("delta", {}).get("content") or "")' "$line"
done
echo
