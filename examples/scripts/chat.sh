#!/usr/bin/env bash
# Chats in the terminal with a compressed cache; the checkpoint needs a chat template.
#
#   chat.sh MODEL [OPTION...]
#
# MODEL is the folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer. The options are those of
# `llama chat`; --help after MODEL lists them. For example:
#
#   chat.sh ~/models/Llama-3.2-1B --key-sparsity 0.5 --value-sparsity 0.7

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run examples/Llama chat "$@"
