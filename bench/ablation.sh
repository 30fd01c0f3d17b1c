#!/usr/bin/env bash
# What the parts of the engine are worth: the same loads with all of them, without the prefix cache, and with static batches.
# usage: bench/ablation.sh RESULTS_FOLDER MODEL WORKLOADS ["options of radixlm bench serve"] [options of radixlm serve...]
set -u
server=
out=$1; model=$2; workloads=$3; load=${4:-}; shift 4 || shift $#
run() {
    name=$1; shift
    python3 -m radixlm serve "$model" --port 30100 --log-level warning "$@" &
    server=$!
    for _ in $(seq 600); do curl -sf -m 2 http://127.0.0.1:30100/ready >/dev/null && break; kill -0 $server 2>/dev/null || return 1; sleep 0.1; done
    sleep "${CAPTURE_S:-1}"
    # shellcheck disable=SC2086
    timeout "${LIMIT_S:-600}" python3 -m radixlm bench serve --url http://127.0.0.1:30100 --workloads "$workloads" --subject "$name" \
        --results "$out" --name "ablation-$name" $load
    measured=$?
    kill -TERM $server; wait $server
    return $measured
}
trap 'kill -TERM $server 2>/dev/null' EXIT
run all "$@" && run no-cache --no-prefix-cache "$@" && run static --batching static "$@"
