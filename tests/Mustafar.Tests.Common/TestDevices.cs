using Mustafar.Native;
using TorchSharp;

namespace Mustafar.Tests;

/// <summary>What the fixtures run on.</summary>
internal static class TestDevices
{
    /// <summary>The CPU, and a CUDA device where torch has one.</summary>
    internal static IEnumerable<string> All => torch.cuda_is_available() ? ["cpu", "cuda"] : ["cpu"];

    /// <summary>Runs a body once for each instruction set variant that the processor has; once on a device.</summary>
    internal static void ForEachVariant(string device, Action<string> body)
    {
        if (device != "cpu")
        {
            body(device);
            return;
        }

        foreach (CpuVariant variant in Enum.GetValues<CpuVariant>())
        {
            if ((NativeMethods.CpuVariants() >> (int)variant & 1) == 0)
            {
                continue;
            }

            TensorAccess.ForcedVariant = variant;
            try
            {
                body($"{device} {variant}");
            }
            finally
            {
                TensorAccess.ForcedVariant = null;
            }
        }
    }
}
