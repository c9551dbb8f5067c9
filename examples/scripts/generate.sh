#!/usr/bin/env bash
# Continues a prompt with a compressed cache.
#
#   generate.sh MODEL [OPTION...]
#
# MODEL is the folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer. The options are those of
# `llama generate`; --help after MODEL lists them. For example:
#
#   generate.sh ~/models/Llama-3.2-1B --prompt "Once upon a time" --max-tokens 100

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run examples/Llama generate "$@"
