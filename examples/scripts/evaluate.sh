#!/usr/bin/env bash
# Compares cache settings with the dense cache: perplexity, divergence, bytes, long-context tasks.
#
#   evaluate.sh MODEL [OPTION...]
#
# MODEL is the folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer. The options are those of
# `llama evaluate`; --help after MODEL lists them. For example:
#
#   evaluate.sh ~/models/Llama-3.2-1B --output results --setting "4 bits: FourBits"

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run examples/Llama evaluate "$@"
