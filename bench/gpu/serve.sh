#!/usr/bin/env bash
# Serves random weights of the Llama-3-8B shape on one card and runs the HTTP workloads against it.
# usage: bench/gpu/serve.sh RESULTS_FOLDER [WORKLOADS] [server options...]
set -u
out=$1; workloads=${2:-single,chat50,burst,mixed,prefix,ctx8k}; shift 2 || shift $#
python3 -m radixlm serve llama-3-8b --load-format dummy --port 30000 --request-timeout 300 "$@" >"$out/serve.log" 2>&1 &
server=$!
begun=$(date +%s%N)
for _ in $(seq 600); do curl -sf -m 2 http://127.0.0.1:30000/ready >/dev/null && break; kill -0 $server || break; sleep 0.1; done
echo "ready after $((($(date +%s%N) - begun) / 1000000)) ms"
curl -s -m 30 http://127.0.0.1:30000/generate -H 'content-type: application/json' -d '{"input_ids": [5, 6, 7], "sampling_params": {"temperature": 0, "max_new_tokens": 4, "ignore_eos": true}}' | cut -c1-200
echo "first answer after $((($(date +%s%N) - begun) / 1000000)) ms"
sleep "${CAPTURE_S:-15}"
timeout "${LIMIT_S:-300}" python3 -m radixlm bench serve --surface completions --workloads "$workloads" --vocab-size 128000 --processes 4 --results "$out" --name h200
curl -s http://127.0.0.1:30000/metrics >"$out/metrics.txt"
kill -TERM $server
wait $server
tail -5 "$out/serve.log"
