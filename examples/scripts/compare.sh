#!/usr/bin/env bash
# Continues one prompt with a dense and with a compressed cache: speed, bytes, text and divergence.
#
#   compare.sh MODEL [OPTION...]
#
# MODEL is the folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer. The options are those of
# `llama compare`; --help after MODEL lists them. For example:
#
#   compare.sh ~/models/Llama-3.2-1B --prompt-file long.txt

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run examples/Llama compare "$@"
