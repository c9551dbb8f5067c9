# Shared by the scripts in this folder, which run a project of this repository on a checkpoint.
# $env:DOTNET_RUN_OPTIONS: options for dotnet run, such as --no-build.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# $Lines: what was piped in; null if nothing was, so that the terminal is read.
function Invoke-Project([string] $Project, [string] $Command, [string] $Model, [string[]] $Options, [object[]] $Lines) {
    if (-not $Model -or -not (Test-Path -LiteralPath (Join-Path $Model 'config.json') -PathType Leaf)) {
        [Console]::Error.WriteLine("Expected the folder of a Hugging Face checkpoint, with a config.json, but got '$Model'.")
        exit 2
    }

    $path = Join-Path $PSScriptRoot '..' '..' $Project
    $run = @('run', '-c', 'Release') + @($env:DOTNET_RUN_OPTIONS -split ' ' | Where-Object { $_ }) +
        @('--project', $path, '--', $Command, '--model', $Model) + $Options
    if ($null -eq $Lines) {
        & dotnet @run
    } else {
        $Lines | & dotnet @run
    }

    exit $LASTEXITCODE
}
