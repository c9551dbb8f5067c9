#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Chats in the terminal with a compressed cache; the checkpoint needs a chat template.
.DESCRIPTION
    The options are those of `llama chat`; --help after the model lists them.
.PARAMETER Model
    The folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer.
.EXAMPLE
    ./chat.ps1 ~/models/Llama-3.2-1B --key-sparsity 0.5 --value-sparsity 0.7
#>
param([string] $Model) # the options are $args: a script with attributes for them would take no piped input

. (Join-Path $PSScriptRoot 'common.ps1')
Invoke-Project 'examples/Llama' 'chat' $Model $args $(if ($MyInvocation.ExpectingInput) { , @($input) })
