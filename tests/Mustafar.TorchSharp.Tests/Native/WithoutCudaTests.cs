using Mustafar.Native;
using Mustafar.Tests.Oracle;
using static TorchSharp.torch;

namespace Mustafar.Tests.Native;

/// <summary>A machine without a CUDA device or driver, whether libmustafar_cuda was built or not.</summary>
[TestFixture]
internal sealed class WithoutCudaTests
{
    [Test]
    public unsafe void A_call_for_a_GPU_is_refused_and_the_CPU_serves_on()
    {
        if (cuda_is_available())
        {
            Assert.Ignore("There is a CUDA device.");
        }

        using var scope = NewDisposeScope();
        manual_seed(5);
        Tensor rows = randn(1, 2, 64, 128);
        Tensor expected = MustafarOps.Prune(rows, 40);
        NativeContext context = new() { Device = (int)Mustafar.Native.Device.Cuda };
        NativeFormat format = new() { HeadDim = 128, DType = (int)DType.F32, Keep = 40 };
        NativeDense dense = TensorAccess.Dense(rows);
        uint[] bitmap = new uint[2 * 64 * 4];
        for (int attempt = 0; attempt < 2; attempt++)
        {
            fixed (uint* bits = bitmap)
            {
                int status = NativeMethods.Prune(&context, &format, 1, 2, 64, &dense, null, bits);
                Assert.That(() => NativeCall.Check(status), Throws.TypeOf<NotSupportedException>().With.Message.Contains("CUDA"));
            }

            Assert.That(bitmap, Has.All.Zero);
            Compare.Same(MustafarOps.Prune(rows, 40), expected, "on the CPU");
        }
    }
}
