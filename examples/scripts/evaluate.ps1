#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Compares cache settings with the dense cache: perplexity, divergence, bytes, long-context tasks.
.DESCRIPTION
    The options are those of `llama evaluate`; --help after the model lists them.
.PARAMETER Model
    The folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer.
.EXAMPLE
    ./evaluate.ps1 ~/models/Llama-3.2-1B --output results --setting "4 bits: FourBits"
#>
param([string] $Model) # the options are $args: a script with attributes for them would take no piped input

. (Join-Path $PSScriptRoot 'common.ps1')
Invoke-Project 'examples/Llama' 'evaluate' $Model $args $(if ($MyInvocation.ExpectingInput) { , @($input) })
