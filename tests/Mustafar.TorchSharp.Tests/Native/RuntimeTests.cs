using System.Text.RegularExpressions;

namespace Mustafar.Tests.Native;

/// <summary>What the library says of itself.</summary>
internal sealed partial class RuntimeTests
{
    [Test]
    public void Versions_are_those_of_the_project()
    {
        Assert.That(MustafarRuntime.Version, Does.Match(VersionNumber()));
        Assert.That(MustafarRuntime.Version, Does.StartWith(MustafarRuntime.NativeVersion));
    }

    [Test]
    public void The_variant_in_use_is_one_of_the_processors()
    {
        Assert.That(MustafarRuntime.CpuVariants, Has.Member(MustafarRuntime.CpuVariant).And.Member("scalar").And.Unique);
        Assert.That(MustafarRuntime.CpuVariants.Contains("avx2"), Is.EqualTo(System.Runtime.Intrinsics.X86.Avx2.IsSupported));
    }

    [Test]
    public void Without_a_device_it_says_why()
    {
        Assert.That(MustafarRuntime.WhyNoCuda, TorchSharp.torch.cuda.is_available() ? Is.Null.Or.Not.Empty : Does.Contain("no CUDA device"));
        Assert.That(MustafarRuntime.Describe(), Does.Contain(MustafarRuntime.CpuVariant).And.Contain(MustafarRuntime.NativeVersion));
    }

    [GeneratedRegex(@"^\d+\.\d+\.\d+")]
    private static partial Regex VersionNumber();
}
