using static TorchSharp.torch;

namespace Mustafar;

/// <summary>Rotary positions as models hand them to their attention.</summary>
internal static class Rotary
{
    /// <summary>Channel i together with channel i + head_dim / 2; x [batch, heads, n, head_dim], cos and sin broadcast to it.</summary>
    internal static Tensor RotateHalf(Tensor x, Tensor cos, Tensor sin)
    {
        long half = x.shape[^1] / 2;
        Tensor turned = cat([x.narrow(-1, half, half).neg(), x.narrow(-1, 0, half)], -1);
        return (x * cos).add_(turned * sin, Scalars.One);
    }

    /// <summary>Channel 2i together with 2i + 1, computed in f32; x [batch, n, heads, head_dim], turns complex [n, head_dim / 2].</summary>
    internal static Tensor Interleaved(Tensor x, Tensor turns)
    {
        long[] shape = x.shape;
        Tensor pairs = x.to(ScalarType.Float32).reshape(shape[0], shape[1], shape[2], shape[3] / 2, 2).view_as_complex();
        return (pairs * turns.to(x.device).unsqueeze(0).unsqueeze(2)).view_as_real().reshape(shape).to(x.dtype);
    }
}
