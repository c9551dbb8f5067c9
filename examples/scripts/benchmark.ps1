#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Times one decode step of attention with the heads and head_dim of a checkpoint, against torch's dense attention.
.DESCRIPTION
    The options are those of `Mustafar.Benchmarks attention`; --help after the model lists them.
.PARAMETER Model
    The folder of a Hugging Face checkpoint: config.json, safetensors and a tokenizer.
.EXAMPLE
    ./benchmark.ps1 ~/models/Llama-3.2-1B --dtypes bfloat16 --threads 8
#>
param([string] $Model) # the options are $args: a script with attributes for them would take no piped input

. (Join-Path $PSScriptRoot 'common.ps1')
Invoke-Project 'benchmarks/Mustafar.Benchmarks' 'attention' $Model $args $(if ($MyInvocation.ExpectingInput) { , @($input) })
