#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Continues a prompt with a compressed cache.
.DESCRIPTION
    The options are those of `llama generate`; --help after the model lists them.
.PARAMETER Model
    The folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer.
.EXAMPLE
    ./generate.ps1 ~/models/Llama-3.2-1B --prompt "Once upon a time" --max-tokens 100
#>
param([string] $Model) # the options are $args: a script with attributes for them would take no piped input

. (Join-Path $PSScriptRoot 'common.ps1')
Invoke-Project 'examples/Llama' 'generate' $Model $args $(if ($MyInvocation.ExpectingInput) { , @($input) })
