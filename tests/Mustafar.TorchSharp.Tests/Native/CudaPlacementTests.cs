using Mustafar.Benchmarks.Cuda;
using Mustafar.Tests.Oracle;
using TorchSharp;
using static TorchSharp.torch;

namespace Mustafar.Tests.Native;

/// <summary>Work on a CUDA device goes where torch's goes: to the tensors' device, and there to the current stream.</summary>
[TestFixture]
internal sealed class CudaPlacementTests
{
    [SetUp]
    public void NeedsDevice()
    {
        if (!cuda_is_available())
        {
            Assert.Ignore("No CUDA device.");
        }
    }

    [TestCase(false)]
    [TestCase(true)]
    public void A_step_waits_for_what_the_current_stream_has_to_do(bool balanced)
    {
        using var scope = NewDisposeScope();
        (Tensor expected, Tensor prompt, Tensor token) = Step(CUDA, balanced);
        Tensor late = zeros_like(prompt), factor = eye(4096, dtype: ScalarType.Float16, device: CUDA), product = factor.clone();
        using MustafarCache cache = New(CUDA, balanced);
        cuda.synchronize();
        nint stream = CudaRuntime.CreateStream();
        nint guard = CudaRuntime.EnterStream(stream, 0);
        try
        {
            // Milliseconds of work before the keys are there. Streams of this kind don't wait for the default one, nor it for them.
            for (int i = 0; i < 50; i++)
            {
                product = product.mm(factor);
            }

            late.copy_(prompt);
            cache.Append(late, late);
            Tensor output = cache.Forward(token, token, token);
            CudaRuntime.Synchronize(stream);
            Compare.Same(output, expected, "on a stream of its own");
        }
        finally
        {
            CudaRuntime.LeaveStream(guard);
        }
    }

    [TestCase(false)]
    [TestCase(true)]
    public void A_device_that_is_not_the_current_one_serves(bool balanced)
    {
        if (cuda.device_count() < 2)
        {
            Assert.Ignore("Only one CUDA device.");
        }

        using var scope = NewDisposeScope();
        (Tensor expected, Tensor prompt, Tensor token) = Step(CUDA, balanced);
        torch.Device second = new("cuda:1");
        using MustafarCache cache = New(second, balanced);
        (prompt, token) = (prompt.to(second), token.to(second));
        cache.Append(prompt, prompt);
        Tensor output = cache.Forward(token, token, token);
        Assert.That(output.device_index, Is.EqualTo(1));
        Compare.Same(output.cpu(), expected.cpu(), "on the second device");
    }

    private static (Tensor Output, Tensor Prompt, Tensor Token) Step(torch.Device device, bool balanced)
    {
        manual_seed(3);
        Tensor prompt = randn(2, 2, 300, 64).to(ScalarType.Float16).to(device);
        Tensor token = randn(2, 2, 1, 64).to(ScalarType.Float16).to(device);
        using MustafarCache cache = New(device, balanced);
        cache.Append(prompt, prompt);
        return (cache.Forward(token, token, token), prompt, token);
    }

    private static MustafarCache New(torch.Device device, bool balanced) =>
        new(2, new() { NumKvHeads = 2, HeadDim = 64 }, ScalarType.Float16, device, new MustafarOptions { BalancedKeys = balanced, BalancedValues = balanced, KeySparsity = 0.5, ValueSparsity = 0.5 });
}
