#!/usr/bin/env pwsh

<#
.SYNOPSIS
    Configures, builds, tests or packs Mustafar.TorchSharp.
.DESCRIPTION
    A thin layer over dotnet and cmake; each task prints the command that it runs. `dotnet build` and `dotnet test` alone
    work as well: they build the native library by themselves.
.PARAMETER Task
    configure: a CMake build folder for native work, artifacts/cmake/PRESET. build: everything. test: build and test.
    bindings: writes the generated C# imports anew from the C header. pack: the NuGet packages.
.PARAMETER Configuration
    build, test and pack: the .NET configuration.
.PARAMETER Preset
    configure: the preset of CMakePresets.json (release, debug, sanitize, arm64, windows).
.PARAMETER Cuda
    Whether to build the CUDA library: OFF, ON, or AUTO (where a CUDA compiler is found).
.PARAMETER NativePath
    A built libmustafar.so or mustafar.dll, or the folder it lies in, to use instead of building one.
.PARAMETER Runtimes
    pack: a folder of built native libraries for other platforms, RID/native/FILE; artifacts/runtimes if it is not given.
.PARAMETER Output
    pack: where the packages go; artifacts/packages if it is not given.
.EXAMPLE
    ./build.ps1 test -Configuration Debug
#>
[CmdletBinding()]
param(
    [Parameter(Position = 0)]
    [ValidateSet('configure', 'build', 'test', 'bindings', 'pack')]
    [string] $Task = 'build',

    [ValidateSet('Debug', 'Release')]
    [string] $Configuration = 'Release',

    [string] $Preset = 'release',

    [ValidateSet('OFF', 'ON', 'AUTO')]
    [string] $Cuda = 'OFF',

    [string] $NativePath,

    [string] $Runtimes,

    [string] $Output
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

function Invoke-Tool([string] $Name, [string[]] $Arguments) {
    Write-Host "> $Name $($Arguments -join ' ')"
    & $Name @Arguments
    if ($LASTEXITCODE -ne 0) {
        throw "$Name ended with exit code $LASTEXITCODE."
    }
}

$properties = @("-p:MustafarCuda=$Cuda")
if ($NativePath) {
    # A relative path counts from where the caller stands.
    $properties += "-p:MustafarNativePath=$((Resolve-Path $NativePath).Path)"
}

if ($Runtimes) {
    $properties += "-p:MustafarRuntimes=$((Resolve-Path $Runtimes).Path)"
}
$packages = $Output ? $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Output) : "$PSScriptRoot/artifacts/packages"

Push-Location $PSScriptRoot
try {
    switch ($Task) {
        'configure' { Invoke-Tool cmake @('--preset', $Preset, "-DMUSTAFAR_CUDA=$Cuda") }
        'build' { Invoke-Tool dotnet (@('build', '-c', $Configuration) + $properties) }
        'test' { Invoke-Tool dotnet (@('test', '-c', $Configuration, '--max-parallel-test-modules', '1') + $properties) }
        'bindings' { Invoke-Tool dotnet @('run', '--project', 'managed/Mustafar.BindingGenerator') }
        'pack' { Invoke-Tool dotnet (@('pack', '-c', $Configuration, '-o', $packages) + $properties) }
    }
}
finally {
    Pop-Location
}
