using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>Plain arrays of tensors.</summary>
internal static class Values
{
    internal static float[] Of(Tensor tensor)
    {
        using Tensor host = tensor.detach().to(ScalarType.Float32).cpu().contiguous();
        return host.data<float>().ToArray();
    }
}
