"""xgrammar as a subject of `radixlm bench masks`: run by its own interpreter with the file of cases, prints the times as JSON."""

import json
import multiprocessing
import sys
import time

LIMIT_S = 10.0  # for one constraint; some of them never end


def main(path: str) -> None:
    import torch
    import xgrammar  # pyright: ignore[reportMissingImports] - the peer has its own environment
    from transformers import PreTrainedTokenizerFast

    with open(path) as file:
        asked = json.load(file)
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=asked["tokenizer"])
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=asked["size"], stop_token_ids=asked["ends"])
    times = {"compile": [], "first": [], "again": [], "failed": 0}
    for case in asked["cases"]:
        for name, value in in_time(case, info, asked["size"]).items():
            times[name] += value
    print(json.dumps(times))


def in_time(case, info, size):
    """The times of one case, from a process that is ended after LIMIT_S."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: theirs.send(walked(case, info, size)))
    process.start()
    try:
        return ours.recv() if ours.poll(LIMIT_S) else {"failed": 1}
    finally:
        process.kill()
        process.join()


def walked(case, info, size):
    import xgrammar  # pyright: ignore[reportMissingImports] - the peer has its own environment

    kind, source, texts = case
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    times = {"compile": [], "first": [], "again": [], "failed": 0}
    try:
        began = time.process_time()
        if kind == "regex":
            grammar = compiler.compile_regex(source)
        else:
            grammar = compiler.compile_json_schema(
                source, any_whitespace=False, separators=(",", ":"), strict_mode=False
            )
        times["compile"].append(time.process_time() - began)
    except Exception:  # noqa: BLE001 - it does not take the constraint
        return {"failed": 1}
    mask = xgrammar.allocate_token_bitmask(1, size)
    for text in texts:
        fits = True
        for name in ("first", "again"):
            matcher = xgrammar.GrammarMatcher(grammar)
            for token in text:
                began = time.process_time()
                matcher.fill_next_token_bitmask(mask, 0)
                times[name].append(time.process_time() - began)
                fits = fits and matcher.accept_token(token)
                if not fits:
                    break
        times["failed"] += not fits
    return times


if __name__ == "__main__":
    main(sys.argv[1])
