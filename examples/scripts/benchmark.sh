#!/usr/bin/env bash
# Times one decode step of attention with the heads and head_dim of a checkpoint, against torch's dense attention.
#
#   benchmark.sh MODEL [OPTION...]
#
# MODEL is the folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer. The options are those of
# `Mustafar.Benchmarks attention`; --help after MODEL lists them. For example:
#
#   benchmark.sh ~/models/Llama-3.2-1B --dtypes bfloat16 --threads 8

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run benchmarks/Mustafar.Benchmarks attention "$@"
