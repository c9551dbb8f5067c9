#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Continues one prompt with a dense and with a compressed cache: speed, bytes, text and divergence.
.DESCRIPTION
    The options are those of `llama compare`; --help after the model lists them.
.PARAMETER Model
    The folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer.
.EXAMPLE
    ./compare.ps1 ~/models/Llama-3.2-1B --prompt-file long.txt
#>
param([string] $Model) # the options are $args: a script with attributes for them would take no piped input

. (Join-Path $PSScriptRoot 'common.ps1')
Invoke-Project 'examples/Llama' 'compare' $Model $args $(if ($MyInvocation.ExpectingInput) { , @($input) })
